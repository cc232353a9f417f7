"""Keeps a root file system before its compute is released: for Pause and Terminate, and for the sweep's stop.

What was captured counts as long as nothing can have changed since: a frozen sandbox from its freeze on, one that the
sweep calls idle from its last use on, and one that somebody pauses only by the commit of that very request.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from sandboxd.manager.commits import WITH_ROOT, Commits
from sandboxd.manager.image_ports import QUIET, CommitInProgressError
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.model.commit_errors import ImageNotRunningError, RootNotSavedError
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import RequestId, SandboxId
from sandboxd.model.image import CommitTrigger, Generation, GenerationId, GenerationStatus
from sandboxd.model.sandbox import Incarnation, Sandbox, SandboxState
from sandboxd.model.sources import Clock, IdSource

GIVEN_UP: Final = frozenset({ImageNotRunningError.reason})
"""Failures that say that the root file system is not wanted: it was rolled back."""
RETRY_INSTALL: Final = timedelta(minutes=30)
FIRST_DELAY: Final = timedelta(seconds=30)
LONGEST_DELAY: Final = timedelta(hours=1)
"""Between attempts of the sweep at a commit that keeps failing: four times as long each time."""
MOST_FAILURES: Final = 8
_G = GenerationStatus

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class RootSaving:
    """Sees to it that nothing is released before it is kept. Where nothing can be committed it does nothing."""

    units: UnitsOfWork
    commits: Commits | None
    keeps_root: bool
    """True where a stop loses nothing."""
    clock: Clock
    ids: IdSource

    @property
    def active(self) -> bool:
        """True where root file systems are committed before they go."""
        return self.commits is not None and not self.keeps_root

    async def save(
        self, sandbox: SandboxId, *, trigger: CommitTrigger, request_id: RequestId, timeout: timedelta
    ) -> None:
        """Return when what the root file system has is kept, for a request that ends the compute.

        Args:
            sandbox: Whose. One without compute has nothing to lose.
            trigger: PAUSE or TERMINATE.
            request_id: Of the request: repeated, it waits for the same commit.
            timeout: How long the caller waits.

        Raises:
            RootNotSavedError: It could not be kept; the message says why, and what was tried.
            DeadlineError: The commit has not ended in time; it goes on.
        """
        commits = self.commits
        if commits is None or self.keeps_root:
            return
        began = self.clock.monotonic()

        def left() -> timedelta:
            return max(timedelta(0), timeout - timedelta(seconds=self.clock.monotonic() - began))

        while True:
            async with self.units.begin() as work:
                found, life = await self._present(work, sandbox)
                if life is None or await self._is_saved(work, found, life, since=_frozen_since(found)):
                    return
                own = await work.generations.asked_for(found.client, request_id)
                flying = await work.generations.in_flight(sandbox)
            if own is None and flying is not None:
                await commits.wait(flying.id, timeout=left())  # it began too early to be this request's
                continue
            if own is None or own.status is _G.FAILED:
                try:
                    own = await self._begin(sandbox, trigger=trigger, request_id=None if own else request_id)
                except CommitInProgressError:
                    continue
            ended = await commits.wait(own.id, timeout=left())
            if _kept(ended) or _unwanted(ended):
                return
            raise _not_saved(ended)

    async def saved_or_begun(self, sandbox: Sandbox, *, since: datetime) -> bool:
        """Tell whether what the root file system has is kept; where it is not, see that a commit is on its way.

        Args:
            sandbox: Idle, as the sweep sees it.
            since: From then on nothing has changed.

        Raises:
            RootNotSavedError: The last commit since then failed; the next call begins another one.
        """
        commits = self.commits
        if commits is None:
            return False
        async with self.units.begin() as work:
            found, life = await self._present(work, sandbox.id)
            if life is None or await self._is_saved(work, found, life, since=since):
                return True
            if await work.generations.in_flight(sandbox.id) is not None:
                return False
            newest = await work.generations.list(sandbox.id, everything=True, page_size=MOST_FAILURES, page_token="")
        failures = 0
        for one in newest.items:
            if one.status is not _G.FAILED or one.trigger is not CommitTrigger.STOP or one.create_time < since:
                break
            failures += 1
        if failures:
            last = newest.items[0]
            if last.incarnation == life.id and _unwanted(last):
                return True
            again = (last.end_time or last.update_time) + FIRST_DELAY * 4 ** (failures - 1)
            wait = min(again, (last.end_time or last.update_time) + LONGEST_DELAY) - self.clock.now()
            if wait > timedelta(0):
                raise _not_saved(last, retry_after=wait)
        with suppress(CommitInProgressError):
            await self._begin(sandbox.id, trigger=CommitTrigger.STOP)
        return False

    def install_time(self, sandbox: Sandbox) -> datetime | None:
        """When what was installed is to be committed unless somebody uses it before; None where nothing is to be."""
        if self.commits is None or self.keeps_root or sandbox.state is not SandboxState.ACTIVE:
            return None
        quiet, dirty = self.commits.images.install_quiet, sandbox.dirty_since
        return None if quiet is None or dirty is None else max(dirty, sandbox.last_use_time) + quiet

    async def commit_installs(self, sandbox: Sandbox, *, at: datetime) -> datetime | None:
        """Begin a commit where something was installed and the sandbox has been idle since.

        Once for each time that it became dirty; where that fails, again after a while. It keeps what a crash would
        lose, and lets a later stop find that nothing has changed.

        Returns:
            When to look again, after `at`; None where nothing is installed that could be committed.
        """
        due, dirty = self.install_time(sandbox), sandbox.dirty_since
        if due is None or dirty is None or due > at:
            return due
        async with self.units.begin() as work:
            newest = await work.generations.list(sandbox.id, everything=True, page_size=1, page_token="")
        last = newest.items[0] if newest.items else None
        if last is not None and last.create_time >= max(dirty, at - RETRY_INSTALL):
            return max(last.create_time + RETRY_INSTALL, at + FIRST_DELAY)
        try:
            await self._begin(sandbox.id, trigger=CommitTrigger.INSTALL)
        except SandboxdError as error:
            log.info("saving.not_begun", sandbox=sandbox.id, reason=error.reason, error=error.message)
            return at + QUIET
        return at + RETRY_INSTALL

    async def _present(self, work: UnitOfWork, sandbox: SandboxId) -> tuple[Sandbox, Incarnation | None]:
        """The sandbox, and its life if that has a root file system which could be lost and is wanted."""
        found = await work.sandboxes.get(sandbox)
        life = await work.incarnations.current(sandbox)
        if found.state not in WITH_ROOT or life is None or life.ready_time is None:
            return found, None
        if found.image is not None:
            active = await work.generations.get(found.image.generation)
            if active.given_up == life.id:
                return found, None  # somebody rolled back, and gave up what runs
        return found, life

    async def _is_saved(self, work: UnitOfWork, sandbox: Sandbox, life: Incarnation, *, since: datetime | None) -> bool:
        if since is None:
            return False
        saved = await work.generations.saved_time(sandbox.id, life.id)
        return saved is not None and saved >= since

    async def _begin(
        self, sandbox: SandboxId, *, trigger: CommitTrigger, request_id: RequestId | None = None
    ) -> Generation:
        commits = self.commits
        if commits is None:
            raise RootNotSavedError(f"Nothing commits sandbox {sandbox}.", sandbox=sandbox)
        async with self.units.begin() as work:
            held = await commits.insert(
                work, sandbox, name=GenerationId(self.ids.new("gen")), trigger=trigger, request_id=request_id
            )
            await work.commit()
        commits.start(held)
        return held.generation


def _frozen_since(sandbox: Sandbox) -> datetime | None:
    """From when on nothing can have changed in a sandbox; None where something can."""
    return sandbox.state_time if sandbox.state is SandboxState.HIBERNATED else None


def _kept(generation: Generation) -> bool:
    ended_well = generation.status in (_G.ACTIVE, _G.DISCARDED)
    return ended_well or (generation.status is _G.SUPERSEDED and generation.activate_time is not None)


def _unwanted(generation: Generation) -> bool:
    return generation.failure is not None and generation.failure.reason in GIVEN_UP


def _not_saved(generation: Generation, *, retry_after: timedelta | None = None) -> RootNotSavedError:
    failure = generation.failure
    cause, reason = ("It was overtaken.", "") if failure is None else (failure.message, failure.reason)
    return RootNotSavedError(
        f"What was installed in sandbox {generation.sandbox} could not be kept: {cause} "
        "Its compute is not released without that; force gives up what is in no image.",
        sandbox=generation.sandbox,
        image=generation.tag,
        cause=reason,
        retry_after=retry_after,
    )
