"""The sweep: looks at sandboxes whose time has come, announces what will happen to idle ones, and does it.

Several may run at once, in `serve` and from outside: a step needs the operation's lease and a sandbox that is still as
it was seen, and what is used in that moment is left alone (`quieting.py`). A sandbox that fails is tried again later,
with growing waits, and stops no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from sandboxd.manager.agents import visit
from sandboxd.manager.changes import Changes
from sandboxd.manager.intents import Intent, Intents, SandboxInUseError
from sandboxd.manager.lifecycle_metrics import LifecycleMetrics, StepOutcome
from sandboxd.manager.lifecycle_ports import Candidate, Dirtiness, Look, Noted, Root
from sandboxd.manager.operations import Operations, Work
from sandboxd.manager.own_deeds import OwnDeeds
from sandboxd.manager.ports import Conversations, UnitOfWork, UnitsOfWork
from sandboxd.manager.quieting import Quieting
from sandboxd.manager.release import Release
from sandboxd.manager.saving import RootSaving
from sandboxd.manager.verdicts import LOSING, WITH_COMPUTE, Act, Verdict, judge, wants_sample
from sandboxd.model.commit_errors import RootNotSavedError
from sandboxd.model.errors import (
    ConflictError,
    DeadlineError,
    InternalError,
    OpenTurnsError,
    SandboxdError,
)
from sandboxd.model.failpoints import failpoint
from sandboxd.model.idleness import Seen, look_at
from sandboxd.model.ids import SandboxId
from sandboxd.model.lifecycle import LifecyclePolicy, LifecycleStep
from sandboxd.model.next_step import TARGETS, idle_since
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.sources import Clock
from sandboxd.stream.agent_port import AgentConnector

PAGE: Final = 500
CONCURRENCY: Final = 16
ASK_TIMEOUT: Final = timedelta(seconds=3)
STEP_TIMEOUT: Final = timedelta(seconds=60)
"""How long one step is waited for. It goes on after that, and recovery sees to its end."""
COMMIT_LOOK: Final = timedelta(seconds=5)
"""When to look again at a sandbox that is being committed before it is stopped."""
FIRST_DELAY: Final = timedelta(seconds=5)
LONGEST_DELAY: Final = timedelta(minutes=10)
"""Between attempts at a sandbox that keeps failing; doubled each time."""
RESULTS: Final = {
    LifecycleStep.HIBERNATE: SandboxState.HIBERNATED,
    LifecycleStep.STOP: SandboxState.STOPPED,
    LifecycleStep.TERMINATE: SandboxState.TERMINATED,
}
ACTIONS: Final = {
    LifecycleStep.HIBERNATE: "Lifecycle/Hibernate",
    LifecycleStep.STOP: "Lifecycle/Stop",
    LifecycleStep.TERMINATE: "Lifecycle/Terminate",
}
"""Names of the deeds in the audit."""
MAX_PLANS: Final = 10_000
"""Plans that one report tells at most."""

log = structlog.get_logger(__name__)


class UsedMeanwhileError(ConflictError):
    """The sandbox was used, or changed, between the look and the step."""

    reason = "USED_MEANWHILE"

    def __init__(self, sandbox: SandboxId) -> None:
        super().__init__(f"Sandbox {sandbox} was used or changed meanwhile.", sandbox=sandbox)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a sweep does, or would do, with one sandbox."""

    sandbox: SandboxId
    client: str
    state: SandboxState
    step: LifecycleStep | None
    time: datetime | None
    act: Act
    hindrance: str = ""
    """Why nothing is done although its time has come, a constant word."""


@dataclass(frozen=True, slots=True)
class _Unsaved:
    """Why what a step would lose is not kept yet, and when to look again."""

    hindrance: str
    delay: timedelta
    failed: bool


@dataclass(slots=True, kw_only=True)
class SweepReport:
    """What one pass came to."""

    looked: int = 0
    announced: int = 0
    called_off: int = 0
    steps: dict[tuple[LifecycleStep, StepOutcome], int] = field(default_factory=dict)
    failed: int = 0
    """Looks and steps that failed."""
    hindered: int = 0
    lag: timedelta = timedelta(0)
    """How late the latest step was begun."""
    seconds: float = 0.0
    plans: list[Planned] = field(default_factory=list)
    """Of a dry run: every sandbox for which something is planned, or hindered."""

    @property
    def taken(self) -> int:
        """Steps that were done."""
        return sum(number for (_, outcome), number in self.steps.items() if outcome == "done")


@dataclass(slots=True, kw_only=True)
class Sweep:
    """One pass at a time over the sandboxes."""

    units: UnitsOfWork
    intents: Intents
    operations: Operations
    quieting: Quieting
    release: Release
    conversations: Conversations
    connector: AgentConnector
    changes: Changes
    dirtiness: Dirtiness
    saving: RootSaving
    defaults: LifecyclePolicy
    deeds: OwnDeeds
    metrics: LifecycleMetrics
    clock: Clock

    async def run(self, *, everything: bool = False, dry_run: bool = False) -> SweepReport:
        """Look at all whose time has come, and do what is to be done.

        Args:
            everything: Look at every sandbox, also before its time: the limits may be others than at the last look.
            dry_run: Change nothing, and tell what would be done.

        Raises:
            DatabaseUnavailableError: PostgreSQL does not answer.
        """
        began, report = self.clock.monotonic(), SweepReport()
        gate = asyncio.Semaphore(CONCURRENCY)
        async for page in self._pages(everything=everything or dry_run):
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._look(one, report, gate, dry_run=dry_run), name=f"look-{one.sandbox.id}")
                    for one in page
                ]
            noted = [found for task in tasks if (found := task.result()) is not None]
            report.looked += len(page)
            if noted and not dry_run:
                await self._note(noted, {one.sandbox.id: one.look for one in page})
        report.seconds = self.clock.monotonic() - began
        if not dry_run:
            self.metrics.passed(candidates=report.looked, seconds=report.seconds, lag=report.lag.total_seconds())
        return report

    async def _pages(self, *, everything: bool) -> AsyncIterator[Sequence[Candidate]]:
        seen, after, at = set[SandboxId](), None, self.clock.now()
        while True:
            async with self.units.begin() as work:
                if everything:
                    found = await work.looks.every(limit=PAGE, after=after)
                else:
                    found = await work.looks.due(at=at, limit=PAGE)
            # What could not be noted comes again: it must not keep the pass going for ever.
            fresh = [one for one in found if one.sandbox.id not in seen]
            if not fresh:
                return
            seen.update(one.sandbox.id for one in fresh)
            after = found[-1].sandbox.id
            yield fresh

    async def _look(
        self, candidate: Candidate, report: SweepReport, gate: asyncio.Semaphore, *, dry_run: bool
    ) -> Noted | None:
        sandbox = candidate.sandbox
        async with gate:
            try:
                return await self._consider(candidate, report, dry_run=dry_run)
            except SandboxdError as error:
                log.warning("lifecycle.look_failed", sandbox=sandbox.id, reason=error.reason, error=error.message)
                return self._failed(candidate, report, error.reason)
            except Exception:  # a task guard: one broken look must not end the pass
                log.exception("lifecycle.look_broken", sandbox=sandbox.id)
                return self._failed(candidate, report, "INTERNAL")

    async def _consider(self, candidate: Candidate, report: SweepReport, *, dry_run: bool) -> Noted | None:
        policy = self.defaults.under(candidate.wishes).under(candidate.sandbox.lifecycle)
        compared = True
        root = await self.dirtiness.root_of(candidate.sandbox)
        commits_first = root is Root.COMMITTABLE and not policy.discard_root_changes
        install = self.saving.install_time(candidate.sandbox) if commits_first else None
        asked_at = self.clock.now()
        if wants_sample(candidate, policy, at=asked_at) or (install is not None and install <= asked_at):
            candidate, compared = await self._sampled(candidate, dry_run=dry_run)
        now = self.clock.now()
        if commits_first and not dry_run:
            install = await self.saving.commit_installs(candidate.sandbox, at=now)
        verdict = judge(candidate, policy, root, judged_by_two=compared, at=now)
        report.hindered += bool(verdict.look.hindrance)
        if dry_run:
            self._plan(verdict, report)
            return None
        if verdict.act is Act.TAKE and commits_first and (unsaved := await self._unsaved(verdict)) is not None:
            report.hindered += 1
            other = judge(candidate, policy, Root.DIRTY, judged_by_two=compared, at=now)
            if not unsaved.failed or other.planned is None or other.planned.time > now:
                look = replace(verdict.look, hindrance=unsaved.hindrance)
                return replace(_noted(replace(verdict, look=look)), look_time=now + unsaved.delay)
            verdict = replace(other, act=Act.TAKE)  # what cannot be stopped hibernates: more was announced
        if verdict.called_off or verdict.act is Act.ANNOUNCE:
            report.called_off += verdict.called_off
            report.announced += verdict.act is Act.ANNOUNCE
            self.metrics.announced(called_off=verdict.called_off)
        if verdict.act is Act.TAKE:
            return await self._take(verdict, report)
        noted = _noted(verdict)
        return noted if install is None else replace(noted, look_time=min(noted.look_time, install))

    async def _unsaved(self, verdict: Verdict) -> _Unsaved | None:
        """Commit before a step that ends the compute; None where all is kept, or nothing is lost.

        Nobody is kept from using the sandbox meanwhile: it is in its resting state, and a use calls the step off.
        """
        sandbox, planned = verdict.sandbox, verdict.planned
        if planned is None or planned.step not in LOSING or sandbox.state not in WITH_COMPUTE:
            return None
        frozen = sandbox.state_time if sandbox.state is SandboxState.HIBERNATED else None
        try:
            if await self.saving.saved_or_begun(sandbox, since=frozen or idle_since(sandbox)):
                return None
        except RootNotSavedError as error:
            log.warning("lifecycle.not_saved", sandbox=sandbox.id, reason=error.reason, error=error.message)
            return _Unsaved(error.metadata.get("cause") or error.reason, error.retry_after or COMMIT_LOOK, failed=True)
        return _Unsaved("COMMITTING", COMMIT_LOOK, failed=False)

    async def _sampled(self, candidate: Candidate, *, dry_run: bool) -> tuple[Candidate, bool]:
        """Ask the agent and the stream room what is used; answers the candidate with the last use that is known now."""
        sandbox = candidate.sandbox
        used = [self.clock.now()] if await self.conversations.open_turns(sandbox.id) else []
        seen = await self._ask(candidate)
        if seen is not None and seen.used is not None:
            used.append(seen.used)
        last = max(used, default=sandbox.last_use_time)
        if last > sandbox.last_use_time:
            sandbox = replace(sandbox, last_use_time=last)
            if not dry_run:
                async with self.units.begin() as work:
                    await work.sandboxes.touch(sandbox.id, at=last)
                    await work.commit()
        look = candidate.look if seen is None else replace(candidate.look, reading=seen.reading)
        return replace(candidate, sandbox=sandbox, look=look), seen is None or seen.compared

    async def _ask(self, candidate: Candidate) -> Seen | None:
        """Ask the agent; None where there is none, and the sandbox rests whatever it did.

        Raises:
            AgentUnavailableError, DeadlineError: It is there and does not answer: nobody knows what it does.
        """
        async with self.units.begin() as work:
            life = await work.incarnations.current(candidate.sandbox.id)
        if life is None or life.endpoint is None:
            return None
        async with visit(self.connector, life.endpoint) as agent:
            activity = await agent.get_activity(timeout=ASK_TIMEOUT)
        return look_at(activity, incarnation=life.id, former=candidate.look.reading, at=self.clock.now())

    async def _take(self, verdict: Verdict, report: SweepReport) -> Noted | None:
        """Do the step that is due; None where the row has changed by it, and says itself when to look again."""
        sandbox, planned = verdict.sandbox, verdict.planned
        if planned is None:
            return _noted(verdict)
        step, now = planned.step, self.clock.now()
        announced = verdict.look.announced
        report.lag = max(report.lag, now - (planned.time if announced is None else announced.time))
        outcome: StepOutcome = "failed"
        try:
            outcome = await self._step(sandbox, step)
        except (SandboxInUseError, UsedMeanwhileError, OpenTurnsError):
            outcome = "in_use"
        except DeadlineError:
            outcome = "late"
        finally:
            report.steps[step, outcome] = report.steps.get((step, outcome), 0) + 1
            self.metrics.step(step, outcome)
        log.info("lifecycle.step", sandbox=sandbox.id, step=step.value, outcome=outcome)
        if outcome == "in_use":
            return replace(_noted(verdict), look_time=now + FIRST_DELAY)
        return None

    async def _step(self, sandbox: Sandbox, step: LifecycleStep) -> StepOutcome:
        if step is LifecycleStep.TERMINATE and sandbox.state in WITH_COMPUTE:
            # By way of STOPPED, which is called off where somebody begins to use it; a termination is not.
            if await self._step(sandbox, LifecycleStep.STOP) != "done":
                return "called_off"
            async with self.units.begin() as work:
                sandbox = await work.sandboxes.get(sandbox.id)
        if await self.conversations.open_turns(sandbox.id):
            raise UsedMeanwhileError(sandbox.id)
        failpoint("lifecycle.before_commit")

        async def plan(_: UnitOfWork, found: Sandbox) -> Sandbox:
            if (found.version, found.last_use_time) != (sandbox.version, sandbox.last_use_time):
                raise UsedMeanwhileError(found.id)
            return found.enter(TARGETS[step], at=self.clock.now())

        work_of: Mapping[LifecycleStep, Work] = {
            LifecycleStep.HIBERNATE: self.quieting.hibernate,
            LifecycleStep.STOP: self.quieting.stop,
            LifecycleStep.TERMINATE: self.release.finish,
        }
        async with self.deeds.recorded(ACTIONS[step], client=sandbox.client, sandbox=sandbox.id):
            intent = await self.intents.open(sandbox.id, plan, timeout=timedelta(0))
            if not isinstance(intent, Intent):
                raise InternalError("An intent without a request met an earlier request.")
            settled = await self.operations.finish(intent, work_of[step], timeout=STEP_TIMEOUT)
        return "done" if settled.sandbox.state is RESULTS[step] else "called_off"

    async def _note(self, noted: Sequence[Noted], before: Mapping[SandboxId, Look]) -> None:
        async with self.units.begin() as work:
            await work.looks.note([replace(one, changed=one.look != before[one.sandbox]) for one in noted])
            await work.commit()
        for one in noted:
            if before[one.sandbox].announced != one.look.announced:
                await self.changes.announce(one.sandbox)  # who has a stream open tells it

    def _failed(self, candidate: Candidate, report: SweepReport, reason: str) -> Noted:
        report.failed += 1
        look = replace(candidate.look, failures=candidate.look.failures + 1, hindrance=reason)
        delay = min(FIRST_DELAY * 2 ** min(look.failures - 1, 20), LONGEST_DELAY)
        return Noted(
            sandbox=candidate.sandbox.id,
            version=candidate.sandbox.version,
            dirty_since=candidate.sandbox.dirty_since,
            look=look,
            look_time=self.clock.now() + delay,
        )

    def _plan(self, verdict: Verdict, report: SweepReport) -> None:
        planned, hindrance = verdict.planned, verdict.look.hindrance
        if (planned is None and not hindrance) or len(report.plans) >= MAX_PLANS:
            return
        sandbox, announced = verdict.sandbox, verdict.look.announced
        time = None if planned is None else planned.time if announced is None else announced.time
        report.plans.append(
            Planned(
                sandbox=sandbox.id,
                client=sandbox.client,
                state=sandbox.state,
                step=None if planned is None else planned.step,
                time=time,
                act=verdict.act,
                hindrance=hindrance,
            )
        )


def _noted(verdict: Verdict) -> Noted:
    return Noted(
        sandbox=verdict.sandbox.id,
        version=verdict.sandbox.version,
        dirty_since=verdict.sandbox.dirty_since,
        look=replace(verdict.look, failures=0),
        look_time=verdict.look_time,
    )
