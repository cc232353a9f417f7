"""What is abandoned, between the model and the contract."""

from __future__ import annotations

from typing import Final

from sandboxd.api.grpc.names import timestamp
from sandboxd.model.abandoned import Abandoned, AbandonedKind, AbandonedReason
from sandboxd.model.legible import legible
from sandboxd.v1 import admin_pb2 as pb

KINDS: Final = {
    AbandonedKind.VOLUME: pb.ABANDONED_KIND_VOLUME,
    AbandonedKind.IMAGE: pb.ABANDONED_KIND_IMAGE,
    AbandonedKind.SNAPSHOT: pb.ABANDONED_KIND_SNAPSHOT,
    AbandonedKind.NAMESPACE: pb.ABANDONED_KIND_NAMESPACE,
    AbandonedKind.WORK: pb.ABANDONED_KIND_WORK,
    AbandonedKind.LEFTOVER: pb.ABANDONED_KIND_LEFTOVER,
    AbandonedKind.UPLOAD: pb.ABANDONED_KIND_UPLOAD,
}
REASONS: Final = {
    AbandonedReason.NO_ROW: pb.ABANDONED_REASON_NO_ROW,
    AbandonedReason.ERASED: pb.ABANDONED_REASON_ERASED,
    AbandonedReason.RELEASED: pb.ABANDONED_REASON_RELEASED,
    AbandonedReason.CLIENT_DELETED: pb.ABANDONED_REASON_CLIENT_DELETED,
    AbandonedReason.SET_ENDED: pb.ABANDONED_REASON_SET_ENDED,
    AbandonedReason.EXPIRED: pb.ABANDONED_REASON_EXPIRED,
    AbandonedReason.COMMIT_ENDED: pb.ABANDONED_REASON_COMMIT_ENDED,
    AbandonedReason.RETAINED: pb.ABANDONED_REASON_RETAINED,
}
KINDS_BACK: Final = {number: kind for kind, number in KINDS.items()}


def encode_abandoned(one: Abandoned) -> pb.Abandoned:
    """Encode something that is abandoned."""
    thing = one.thing
    return pb.Abandoned(
        kind=KINDS[thing.kind],
        name=legible(thing.name, limit=4096),
        reason=REASONS[one.reason],
        size_bytes=thing.size_bytes,
        storage=thing.storage,
        cost_micros=one.cost_micros,
        first_seen_time=timestamp(one.sighting.first_time),
        looks=one.sighting.looks,
        remove_time=timestamp(one.remove_time),
        removable=thing.removable,
        place=one.place,
    )
