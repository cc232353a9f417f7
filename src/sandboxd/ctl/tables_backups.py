"""What is said of backups: their table, why each is kept, and what holds for them. Cells are plain text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.table import Table

from sandboxd.ctl.figures import amount, count, span
from sandboxd.ctl.names import bare
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.tables import filled, when
from sandboxd.v1 import backup_pb2 as pb
from sandboxd.v1 import client_pb2

HOLDS: Final = {
    pb.BACKUP_HOLD_NEWEST: "newest",
    pb.BACKUP_HOLD_LAST: "last",
    pb.BACKUP_HOLD_DAILY: "day",
    pb.BACKUP_HOLD_WEEKLY: "week",
    pb.BACKUP_HOLD_LOCKED: "immutable",
    pb.BACKUP_HOLD_ONLY_COPY: "only copy",
}


def backup_table(backups: Iterable[pb.Backup], console: Console) -> Table:
    """Make the table of `backups ls`."""
    rows = [
        (
            bare(each.name),
            pb.BackupStatus.Name(each.status).removeprefix("BACKUP_STATUS_"),
            amount(sum(one.bytes for one in each.volumes)) if each.volumes else "-",
            amount(sum(one.stored_bytes for one in each.volumes)) if each.volumes else "-",
            when(each.take_time),
            pb.BackupTrigger.Name(each.trigger).removeprefix("BACKUP_TRIGGER_").lower(),
            consistency_of(each) or clean_line(each.failure.reason),
            kept_line(each),
        )
        for each in backups
    ]
    columns = ("BACKUP", "STATUS", "SIZE", "STORED", "TAKEN", "BY", "FILES", "KEPT AS")
    return filled(console, columns, rows, spare=("STORED", "BY", "KEPT AS"))


def consistency_of(backup: pb.Backup) -> str:
    """Say what its files have in common; nothing where that is not known."""
    if not backup.consistency:
        return ""
    return pb.BackupConsistency.Name(backup.consistency).removeprefix("BACKUP_CONSISTENCY_").lower().replace("_", " ")


def kept_line(backup: pb.Backup) -> str:
    """Say why it is kept, and until when where that is known."""
    parts = [", ".join(HOLDS.get(hold, str(hold)) for hold in backup.holds)]
    if pb.BACKUP_HOLD_LOCKED in backup.holds:
        parts.append(f"until {when(backup.lock_time)}")
    elif backup.HasField("expire_time"):
        parts.append(f"goes after {when(backup.expire_time)}")
    return " ".join(part for part in parts if part)


def policy_line(policy: pb.BackupPolicy) -> str:
    """Say by what a sandbox's backups are made and kept."""
    kept = policy.retention
    seconds = policy.every.ToTimedelta().total_seconds()
    made = f"made {_every(seconds)}{' and after terminate' if policy.after_terminate else ''}"
    held = (
        f"kept: the newest {kept.keep_last}, and the newest of {count(kept.keep_daily, 'day')} "
        f"and of {count(kept.keep_weekly, 'week')}"
    )
    return f"{made}; {held}; {_immutable(kept)}"


def wishes_line(policy: client_pb2.ClientPolicy) -> str:
    """Say what a client wants of backups otherwise than the installation; nothing where it wants nothing."""
    parts = []
    if policy.HasField("backup_every"):
        parts.append(f"made {_every(policy.backup_every.ToTimedelta().total_seconds())}")
    kept = policy.backup_retention
    if kept.HasField("keep_last"):
        parts.append(f"the newest {kept.keep_last} kept")
    if kept.HasField("keep_daily"):
        parts.append(f"the newest of {count(kept.keep_daily, 'day')}")
    if kept.HasField("keep_weekly"):
        parts.append(f"the newest of {count(kept.keep_weekly, 'week')}")
    if kept.HasField("immutable_for"):
        parts.append(_immutable(kept))
    return ", ".join(parts)


def _every(seconds: float) -> str:
    return f"every {span(seconds)} of use" if seconds else "never by schedule"


def _immutable(kept: pb.BackupRetention) -> str:
    seconds = kept.immutable_for.ToTimedelta().total_seconds()
    return f"immutable for {span(seconds)}" if seconds else "not immutable"
