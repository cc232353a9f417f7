"""Restore drills between the model and the contract."""

from __future__ import annotations

from typing import Final

from sandboxd.api.grpc.codec_backup import VOLUMES
from sandboxd.api.grpc.names import timestamp
from sandboxd.model.drill import Drill, DrillStatus, DrillTrigger
from sandboxd.model.legible import legible
from sandboxd.v1 import backup_pb2 as pb

_STATUSES: Final = {
    DrillStatus.RUNNING: pb.DRILL_STATUS_RUNNING,
    DrillStatus.PASSED: pb.DRILL_STATUS_PASSED,
    DrillStatus.FAILED: pb.DRILL_STATUS_FAILED,
    DrillStatus.ABANDONED: pb.DRILL_STATUS_ABANDONED,
}
_TRIGGERS: Final = {
    DrillTrigger.SCHEDULE: pb.DRILL_TRIGGER_SCHEDULE,
    DrillTrigger.REQUEST: pb.DRILL_TRIGGER_REQUEST,
}


def encode_drill(drill: Drill) -> pb.Drill:
    """Encode a drill."""
    why = pb.BackupFailure(reason=drill.failure, message=legible(drill.failure_message, limit=1000))
    return pb.Drill(
        id=drill.id,
        backup=f"sandboxes/{drill.sandbox}/backups/{drill.backup}",
        client=drill.client,
        freelancer=drill.freelancer,
        trigger=_TRIGGERS[drill.trigger],
        status=_STATUSES[drill.status],
        image=drill.image,
        volumes=[
            pb.DrilledVolume(
                kind=VOLUMES[one.volume],
                entries=one.entries,
                bytes=one.bytes,
                expected=one.expected,
                found=one.found,
                differences=[legible(each, limit=300) for each in one.differences],
                difference_count=one.difference_count,
            )
            for one in drill.volumes
        ],
        seconds=drill.seconds,
        failure=why if drill.failure else None,
        create_time=timestamp(drill.create_time),
        end_time=timestamp(drill.end_time),
    )
