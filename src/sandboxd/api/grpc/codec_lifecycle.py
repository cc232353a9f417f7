"""When sandboxes rest: between the model and the contract, with the rules that protovalidate would check too slowly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration

from sandboxd.api.grpc.names import timestamp
from sandboxd.model.errors import FieldViolation
from sandboxd.model.lifecycle import LONGEST, NEVER, LifecycleOverrides, LifecycleStep, Limit, limit_problem
from sandboxd.model.next_step import NextStep
from sandboxd.v1 import sandbox_pb2 as pb

STEPS: Final[Mapping[LifecycleStep, pb.LifecycleStep.ValueType]] = {
    LifecycleStep.HIBERNATE: pb.LIFECYCLE_STEP_HIBERNATE,
    LifecycleStep.STOP: pb.LIFECYCLE_STEP_STOP,
    LifecycleStep.TERMINATE: pb.LIFECYCLE_STEP_TERMINATE,
}
_LAST_SECOND: Final = 253_402_300_799
_LIMITS: Final = ("hibernate_after", "stop_after", "terminate_after", "terminate_paused_after")


def encode_lifecycle(overrides: LifecycleOverrides) -> pb.Lifecycle | None:
    """Encode wishes; None where nothing is wished."""
    if overrides == LifecycleOverrides():
        return None
    return pb.Lifecycle(
        hibernate_after=_encode_limit(overrides.hibernate_after),
        stop_after=_encode_limit(overrides.stop_after),
        terminate_after=_encode_limit(overrides.terminate_after),
        terminate_paused_after=_encode_limit(overrides.terminate_paused_after),
        discard_root_changes=overrides.discard_root_changes,
    )


def decode_lifecycle(message: pb.Lifecycle) -> LifecycleOverrides:
    """Decode wishes that keep the rules."""
    limits = {name: _decode_limit(getattr(message, name)) for name in _LIMITS if message.HasField(name)}
    discard = message.discard_root_changes if message.HasField("discard_root_changes") else None
    return LifecycleOverrides(**limits, discard_root_changes=discard)


def encode_next_step(planned: NextStep | None) -> pb.PlannedStep | None:
    """Encode what policy does next."""
    return None if planned is None else pb.PlannedStep(step=STEPS[planned.step], time=timestamp(planned.time))


def lifecycle_rules(message: pb.Lifecycle, *, field: str) -> Iterator[FieldViolation]:
    """Return every rule that wishes break.

    Checked here and not by rules in the proto: those of durations would send every Create through protovalidate.
    """
    for name in _LIMITS:
        limit: pb.LifecycleLimit = getattr(message, name)
        which = limit.WhichOneof("limit")
        if which == "never" and not limit.never:
            yield FieldViolation(field=f"{field}.{name}.never", description="must be true where it is set")
        elif which == "after" and (problem := limit_problem(_decode_limit(limit))):
            yield FieldViolation(field=f"{field}.{name}.after", description=problem)


def awake_rules(message: pb.Sandbox) -> Iterator[FieldViolation]:
    """Return what is wrong with the moment until which a sandbox is to be kept awake."""
    stamp = message.keep_awake_until
    if not (0 <= stamp.seconds <= _LAST_SECOND and 0 <= stamp.nanos < 10**9):
        yield FieldViolation(field="sandbox.keep_awake_until", description="must be a moment from 1970 to 9999")


def _encode_limit(limit: Limit | None) -> pb.LifecycleLimit | None:
    if limit is None:
        return None
    if limit.after is None:
        return pb.LifecycleLimit(never=True)
    after = Duration()
    after.FromTimedelta(limit.after)
    return pb.LifecycleLimit(after=after)


def _decode_limit(limit: pb.LifecycleLimit) -> Limit:
    if limit.WhichOneof("limit") == "never":
        return NEVER
    # A duration may hold more seconds than a timedelta; such a one is too long in any case.
    seconds = max(-1, min(limit.after.seconds, int(LONGEST.total_seconds()) + 1))
    return Limit(after=timedelta(seconds=seconds, microseconds=limit.after.nanos // 1000))
