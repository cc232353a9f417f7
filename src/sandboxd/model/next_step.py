"""What policy will do next with a sandbox, and when, if nobody uses it. Pure: the sweep asks it, and so does Get."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sandboxd.model.lifecycle import LifecyclePolicy, LifecycleStep
from sandboxd.model.sandbox import Sandbox, SandboxState

TARGETS: Final = {
    LifecycleStep.HIBERNATE: SandboxState.HIBERNATING,
    LifecycleStep.STOP: SandboxState.STOPPING,
    LifecycleStep.TERMINATE: SandboxState.TERMINATING,
}
"""Which state begins a step."""
STEPS: Final = {
    SandboxState.ACTIVE: (LifecycleStep.HIBERNATE, LifecycleStep.STOP, LifecycleStep.TERMINATE),
    SandboxState.HIBERNATED: (LifecycleStep.STOP, LifecycleStep.TERMINATE),
    SandboxState.STOPPED: (LifecycleStep.TERMINATE,),
    SandboxState.PAUSED: (LifecycleStep.TERMINATE,),
}
"""What policy may do from where. A sandbox in any other state is on its way, has ended, or waits for a person."""
_STRENGTH: Final = {step: strength for strength, step in enumerate(LifecycleStep)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """A step that comes unless the sandbox is used."""

    step: LifecycleStep
    time: datetime
    """When it is due; may have passed."""
    announce_time: datetime
    """When it is announced."""

    @property
    def target(self) -> SandboxState:
        """The state that begins it."""
        return TARGETS[self.step]


def idle_since(sandbox: Sandbox) -> datetime:
    """From when on a sandbox counts as idle: its last use, or the end of what it was to be kept awake for."""
    if sandbox.state is SandboxState.PAUSED:
        return sandbox.state_time or sandbox.update_time
    kept = sandbox.keep_awake_until
    return sandbox.last_use_time if kept is None else max(sandbox.last_use_time, kept)


def next_step(
    sandbox: Sandbox,
    policy: LifecyclePolicy,
    *,
    at: datetime,
    without: frozenset[LifecycleStep] = frozenset(),
) -> NextStep | None:
    """Say what comes next; None where nothing does.

    Of several that are overdue the strongest is taken: after a day without a sweep a sandbox need not be frozen before
    it is stopped. Of several to come the first one is.

    Args:
        sandbox: The sandbox as it is.
        policy: What holds for it.
        at: Now.
        without: Steps that something hinders.
    """
    planned = [
        _planned(step, limit, since=idle_since(sandbox), lead=policy.lead_of(limit))
        for step in STEPS.get(sandbox.state, ())
        if step not in without and (limit := _limit(sandbox, policy, step)) is not None
    ]
    overdue = [one for one in planned if one.time <= at]
    if overdue:
        return max(overdue, key=lambda one: _STRENGTH[one.step])
    return min(planned, key=lambda one: (one.time, -_STRENGTH[one.step]), default=None)


def _limit(sandbox: Sandbox, policy: LifecyclePolicy, step: LifecycleStep) -> timedelta | None:
    if sandbox.state is SandboxState.PAUSED:
        return policy.terminate_paused_after
    return {
        LifecycleStep.HIBERNATE: policy.hibernate_after,
        LifecycleStep.STOP: policy.stop_after,
        LifecycleStep.TERMINATE: policy.terminate_after,
    }[step]


def _planned(step: LifecycleStep, limit: timedelta, *, since: datetime, lead: timedelta) -> NextStep:
    time = since + limit
    return NextStep(step=step, time=time, announce_time=time - lead)
