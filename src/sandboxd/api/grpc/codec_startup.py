"""How a sandbox came up, between the model and the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration

from sandboxd.model.startup import MissReason, StartPath, StartReport, StartStepName
from sandboxd.v1 import sandbox_pb2 as pb

PATHS: Final[Mapping[StartPath, pb.StartPath.ValueType]] = {
    StartPath.WARM: pb.START_PATH_WARM,
    StartPath.LOCAL: pb.START_PATH_LOCAL_IMAGE,
    StartPath.PULL: pb.START_PATH_PULL,
    StartPath.PROCESS: pb.START_PATH_LOCAL,
}
STEPS: Final[Mapping[StartStepName, pb.StartStepName.ValueType]] = {
    StartStepName.QUEUE: pb.START_STEP_NAME_QUEUE,
    StartStepName.CLAIM: pb.START_STEP_NAME_CLAIM,
    StartStepName.SCHEDULE: pb.START_STEP_NAME_SCHEDULE,
    StartStepName.PULL: pb.START_STEP_NAME_PULL,
    StartStepName.START: pb.START_STEP_NAME_START,
    StartStepName.AGENT: pb.START_STEP_NAME_AGENT,
}
MISSES: Final[Mapping[MissReason, pb.MissReason.ValueType]] = {
    MissReason.NO_POOL: pb.MISS_REASON_NO_POOL,
    MissReason.POOL_OFF: pb.MISS_REASON_POOL_OFF,
    MissReason.POOL_FILLING: pb.MISS_REASON_POOL_FILLING,
    MissReason.POOL_EMPTY: pb.MISS_REASON_POOL_EMPTY,
}


def encode_startup(report: StartReport | None) -> pb.Startup | None:
    """Encode how a sandbox came up; None where that is not known."""
    if report is None:
        return None
    steps = []
    for step in report.steps:
        duration = Duration()
        duration.FromTimedelta(step.duration)
        steps.append(pb.StartStep(name=STEPS[step.name], duration=duration))
    miss = pb.MISS_REASON_UNSPECIFIED if report.miss is None else MISSES[report.miss]
    return pb.Startup(path=PATHS[report.path], steps=steps, miss_reason=miss)
