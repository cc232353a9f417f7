"""What one look at a sandbox comes to. Pure: the sweep brings what it saw and carries out what is decided here."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sandboxd.manager.lifecycle_ports import Announced, Candidate, Look, Root
from sandboxd.model.idleness import SPAN
from sandboxd.model.lifecycle import LifecyclePolicy, LifecycleStep
from sandboxd.model.next_step import NextStep, idle_since, next_step
from sandboxd.model.sandbox import Sandbox, SandboxState

SAMPLES: Final = 3
"""How often processes are looked at within the time after which a sandbox would rest."""
LONGEST_SAMPLE: Final = timedelta(minutes=5)
SELDOM: Final = timedelta(hours=1)
"""When to look again at what nothing is planned for, or at what something hinders."""
WITH_COMPUTE: Final = frozenset({SandboxState.ACTIVE, SandboxState.HIBERNATED})
SAFE: Final = frozenset({Root.CLEAN, Root.COMMITTABLE})
"""What lets a step be taken that ends the compute."""
LOSING: Final = frozenset({LifecycleStep.STOP, LifecycleStep.TERMINATE})
"""Steps that end the compute, and with it what changed in the root file system."""


class Act(enum.Enum):
    """What is to be done now."""

    WAIT = "wait"
    ANNOUNCE = "announce"
    TAKE = "take"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one look came to."""

    sandbox: Sandbox
    """As it was looked at, with the uses that were found."""
    act: Act
    planned: NextStep | None
    """None where nothing is planned."""
    look: Look
    look_time: datetime
    called_off: bool = False
    """True where an announced step will not come: it was used, or its limits have changed."""


def hindered(sandbox: Sandbox, policy: LifecyclePolicy, root: Root) -> frozenset[LifecycleStep]:
    """Say which steps must not be taken because they would lose what nobody has kept."""
    if sandbox.state not in WITH_COMPUTE or policy.discard_root_changes or root in SAFE:
        return frozenset()
    return LOSING


def sample_every(policy: LifecyclePolicy) -> timedelta:
    """Say how often processes are looked at, so that work between two prompts is noticed."""
    limits = [limit for limit in (policy.hibernate_after, policy.stop_after, policy.terminate_after) if limit]
    return max(SPAN, min([LONGEST_SAMPLE, *(limit / SAMPLES for limit in limits)]))


def wants_sample(candidate: Candidate, policy: LifecyclePolicy, *, at: datetime) -> bool:
    """Say whether the agent is to be asked. A frozen one is never: nothing can be used there."""
    sandbox, reading = candidate.sandbox, candidate.look.reading
    if sandbox.state is not SandboxState.ACTIVE:
        return False
    planned = next_step(sandbox, policy, at=at)
    if planned is None:
        return False
    known = reading is not None and reading.incarnation == sandbox.incarnation
    return not known or reading is None or at - reading.time >= sample_every(policy) or planned.announce_time <= at


def judge(candidate: Candidate, policy: LifecyclePolicy, root: Root, *, judged_by_two: bool, at: datetime) -> Verdict:
    """Decide what is to be done with a sandbox.

    Args:
        candidate: The sandbox with the last use that is known now, and with the present look.
        policy: What holds for it.
        root: What a stop would lose.
        judged_by_two: False for an active sandbox whose processes could not be compared with an earlier look.
        at: Now.
    """
    sandbox, look = candidate.sandbox, candidate.look
    without = hindered(sandbox, policy, root)
    wished, planned = next_step(sandbox, policy, at=at), next_step(sandbox, policy, at=at, without=without)
    hindrance = f"ROOT_{root.value}" if wished != planned and wished is not None and wished.time <= at else ""
    since = idle_since(sandbox)
    announced = look.announced
    if announced is not None and (planned is None or (announced.since, announced.step) != (since, planned.step)):
        announced = None
    called_off = look.announced is not None and announced is None
    kept = replace(look, announced=announced, hindrance=hindrance)
    if planned is None:
        return Verdict(
            sandbox=sandbox, act=Act.WAIT, planned=None, look=kept, look_time=at + SELDOM, called_off=called_off
        )

    def wait(until: datetime) -> Verdict:
        if sandbox.state is SandboxState.ACTIVE:
            until = min(until, at + sample_every(policy))
        return Verdict(
            sandbox=sandbox, act=Act.WAIT, planned=planned, look=kept, look_time=until, called_off=called_off
        )

    if at < planned.announce_time:
        return wait(planned.announce_time)
    if sandbox.state is SandboxState.ACTIVE and not judged_by_two:
        return wait(at + SPAN)
    lead = planned.time - planned.announce_time
    if announced is None and lead:
        told = Announced(step=planned.step, time=max(planned.time, at + lead), since=since)
        return Verdict(
            sandbox=sandbox,
            act=Act.ANNOUNCE,
            planned=planned,
            look=replace(kept, announced=told),
            look_time=told.time,
            called_off=called_off,
        )
    if announced is not None and at < announced.time:
        return wait(announced.time)
    return Verdict(sandbox=sandbox, act=Act.TAKE, planned=planned, look=kept, look_time=at, called_off=called_off)
