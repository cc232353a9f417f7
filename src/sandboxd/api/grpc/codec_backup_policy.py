"""What is kept of backups, and why, between the model and the contract."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration

from sandboxd.model.backup_retention import BackupPolicy, BackupRetention, Hold, RetentionOverrides
from sandboxd.v1 import backup_pb2 as pb

HOLDS: Final = {
    Hold.NEWEST: pb.BACKUP_HOLD_NEWEST,
    Hold.LAST: pb.BACKUP_HOLD_LAST,
    Hold.DAILY: pb.BACKUP_HOLD_DAILY,
    Hold.WEEKLY: pb.BACKUP_HOLD_WEEKLY,
    Hold.LOCKED: pb.BACKUP_HOLD_LOCKED,
    Hold.ONLY_COPY: pb.BACKUP_HOLD_ONLY_COPY,
}


def encode_retention(wishes: RetentionOverrides | BackupRetention) -> pb.BackupRetention:
    """Encode what is kept, or what a client wants of it; what it does not mind stays unset."""
    encoded = pb.BackupRetention(
        keep_last=wishes.keep_last, keep_daily=wishes.keep_daily, keep_weekly=wishes.keep_weekly
    )
    if wishes.immutable_for is not None:
        encoded.immutable_for.FromTimedelta(wishes.immutable_for)
    return encoded


def decode_retention(message: pb.BackupRetention) -> RetentionOverrides:
    """Decode what a client wants kept."""
    return RetentionOverrides(
        keep_last=message.keep_last if message.HasField("keep_last") else None,
        keep_daily=message.keep_daily if message.HasField("keep_daily") else None,
        keep_weekly=message.keep_weekly if message.HasField("keep_weekly") else None,
        immutable_for=message.immutable_for.ToTimedelta() if message.HasField("immutable_for") else None,
    )


def encode_backup_policy(policy: BackupPolicy) -> pb.BackupPolicy:
    """Encode what holds for a sandbox's backups."""
    every = Duration()
    every.FromTimedelta(policy.every)
    return pb.BackupPolicy(
        every=every, after_terminate=policy.after_terminate, retention=encode_retention(policy.retention)
    )
