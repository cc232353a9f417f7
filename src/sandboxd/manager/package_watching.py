"""Follows the packages of running sandboxes: each is watched by one replica, over one call that is silent at rest.

A replica claims what nobody watches, and lets go of what rests: in a frozen sandbox nothing is installed. Two that
watch the same one do no harm: what is kept is fenced by the owner's row, and each change has its number.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.changes import Changes
from sandboxd.manager.package_keeping import PackageKeeping
from sandboxd.manager.package_metrics import PackageMetrics
from sandboxd.manager.package_ports import PackageSource, Watched
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.errors import AgentUnavailableError, NotImplementedYetError, SandboxdError
from sandboxd.model.ids import SandboxId
from sandboxd.model.packages import InstalledPackages, PackageChange, PackageNews
from sandboxd.model.sources import Clock

MAX_WATCHED: Final = 5000
"""Watches of one replica: each is a connection to an agent."""
CLAIMED_AT_ONCE: Final = 200
BEGUN_AT_ONCE: Final = 32
"""Watches that wait for their first news: after a restart there are all of them."""
LOOK_SECONDS: Final = 15.0
"""How often a replica looks for sandboxes that nobody watches, in case a hint was lost or another replica died."""
BEGIN_SECONDS: Final = 2.0
"""How long one that does not answer keeps others from beginning."""
RETRY_SECONDS: Final = 3.0
PAUSE_SECONDS: Final = 0.5
"""Between two looks that hints ask for."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLimits:
    """How much is taken of one sandbox, and how patient we are with it."""

    batch: int = 500
    """Changes of one transaction."""
    gather: timedelta = timedelta(milliseconds=250)
    """How long more changes are waited for after one."""
    burst: int = 5000
    """Changes that are taken at once: a whole desktop."""
    per_second: float = 5.0
    """Changes that are taken for good; who tells more has to wait, and the agent forgets its oldest."""
    set_cost: int = 20
    """So many packages of a set count as one change. The largest takes half a second of a processor: five at once, and
    then one in 200 s; a set of 500 comes 200 times at once, and then every 5 s."""
    first_news: timedelta = timedelta(seconds=40)
    """How long an agent may take for its first look; it waits for an installation to stand still for 10 s."""
    first_wait: timedelta = timedelta(seconds=1)
    """Before an agent that was lost is asked again; doubled each time."""
    longest_wait: timedelta = timedelta(minutes=1)
    older_wait: timedelta = timedelta(hours=1)
    """Before an agent is asked again that is older than this; it comes new with its sandbox's next life."""


class _Allowance:
    """How much of one sandbox is taken: a bucket that fills by itself."""

    def __init__(self, limits: WatchLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._left = float(limits.burst)
        self._at = clock.monotonic()

    def take(self, cost: float) -> float:
        """Take so much; answers for how many seconds to wait before more is read."""
        now = self._clock.monotonic()
        self._left = min(self._limits.burst, self._left + (now - self._at) * self._limits.per_second) - cost
        self._at = now
        return max(0.0, -self._left / self._limits.per_second)


class PackageWatcher:
    """The watches of one replica; `run` must run beside it."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        source: PackageSource,
        keeping: PackageKeeping,
        changes: Changes,
        metrics: PackageMetrics,
        clock: Clock,
        replica: str,
        limits: WatchLimits | None = None,
        look_seconds: float = LOOK_SECONDS,
        max_watched: int = MAX_WATCHED,
    ) -> None:
        self._units = units
        self._source = source
        self._keeping = keeping
        self._changes = changes
        self._metrics = metrics
        self._clock = clock
        self._replica = replica
        self._limits = limits or WatchLimits()
        self._look_seconds = look_seconds
        self._max_watched = max_watched
        self._watches: dict[SandboxId, tuple[Watched, asyncio.Task[None]]] = {}
        self._beginning = asyncio.Semaphore(BEGUN_AT_ONCE)
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Watch until cancelled. What is watched then is free with this replica's lock."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._keep_looking()
        finally:
            self._watches.clear()
            self._metrics.watched.set(0)

    async def _keep_looking(self) -> None:
        with self._changes.feed() as feed:
            among: Collection[SandboxId] | None = None
            while True:
                try:
                    more = await self._look(among)
                    among = None if more else await feed.take(timeout=self._look_seconds)
                except SandboxdError as error:
                    log.warning("packages.look_failed", error=error.message)
                    among = None
                    await asyncio.sleep(RETRY_SECONDS)
                except Exception:  # a loop: one bad look must not end all that follow
                    log.exception("packages.look_broken")
                    among = None
                    await asyncio.sleep(RETRY_SECONDS)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _look(self, among: Collection[SandboxId] | None) -> bool:
        """Take on what is free, begin what is ours, and let go of what rests; True where more may be free."""
        room = min(self._max_watched - len(self._watches), CLAIMED_AT_ONCE)
        claimed = 0
        async with self._units.begin() as work:
            if room > 0:
                claimed = len(await work.packages.claim(replica=self._replica, limit=room, among=among))
                await work.commit()
        async with self._units.begin() as work:
            owned = {one.sandbox: one for one in await work.packages.owned(replica=self._replica, among=among)}
        gone = []
        for sandbox, (watched, task) in list(self._watches.items()):
            if among is not None and sandbox not in among:
                continue
            wanted = owned.get(sandbox)
            if wanted is None or wanted.incarnation != watched.incarnation or task.done():
                task.cancel()
                del self._watches[sandbox]
            if wanted is None:
                gone.append(sandbox)
        if self._tasks is None:
            raise RuntimeError("a look needs `run` around it")
        for sandbox, wanted in owned.items():
            if sandbox not in self._watches:
                task = self._tasks.create_task(self._watch(wanted), name=f"packages-{sandbox}")
                self._watches[sandbox] = (wanted, task)
        self._metrics.watched.set(len(self._watches))
        if gone:  # whichever replica wakes it may have it
            async with self._units.begin() as work:
                await work.packages.release(gone, replica=self._replica)
                await work.commit()
        return claimed == CLAIMED_AT_ONCE

    async def _watch(self, watched: Watched) -> None:
        """Watch one life until it is over or somebody else's; whoever does not answer is asked again."""
        following = self._limits.first_wait
        allowance = _Allowance(self._limits, self._clock)
        while True:
            follower, wait, older = _Follower(watched, allowance), following, False
            began = self._clock.monotonic()
            try:
                await self._follow(follower)
                return
            except NotImplementedYetError:
                self._metrics.ended("refused")
                older = True
            except SandboxdError as error:
                # Also where the database does not answer: what was not kept is told again.
                self._metrics.ended("unanswered")
                log.info("packages.watch_lost", sandbox=watched.sandbox, error=error.message)
            except Exception:  # a task guard: one odd agent must not end the watches of all others
                self._metrics.ended("broken")
                log.exception("packages.watch_broken", sandbox=watched.sandbox)
            if older:
                wait = self._limits.older_wait
            elif self._clock.monotonic() - began > self._limits.longest_wait.total_seconds():
                wait = self._limits.first_wait  # it was a good one; who ends each call at once is asked ever later
            watched = replace(watched, after=follower.after)
            await asyncio.sleep(wait.total_seconds() * random.uniform(0.5, 1.0))  # noqa: S311  no secret
            following = min(wait * 2, self._limits.longest_wait)

    async def _follow(self, follower: _Follower) -> None:
        """Keep what an agent tells; returns when it is not ours to keep."""
        watched = follower.watched
        async with aclosing(self._source.watch(watched.endpoint, after=watched.after)) as news:
            pending = _Pending(news)
            try:
                await self._begin(pending)
                while (batch := await self._gather(pending)) is not None:
                    if not await self._keep(follower, *batch):
                        return
            finally:
                await pending.close()
        raise AgentUnavailableError("The agent has ended the watch.")

    async def _begin(self, pending: _Pending) -> None:
        """Wait for the first news: with few others for a while, as most come at once, then alone."""
        async with self._beginning:
            if await pending.comes(within=BEGIN_SECONDS):
                return
        if not await pending.comes(within=self._limits.first_news.total_seconds()):
            raise AgentUnavailableError("The agent has not told what is installed.")

    async def _gather(self, pending: _Pending) -> tuple[list[PackageChange], InstalledPackages | None] | None:
        """Wait for news, and take with them what follows at once; None when there will be no more."""
        changes: list[PackageChange] = []
        installed: InstalledPackages | None = None
        one = await pending.take(within=None)
        while one is not None:
            if isinstance(one, InstalledPackages):
                installed = one
                break  # what follows is after it
            changes.append(one)
            if len(changes) >= self._limits.batch:
                break
            one = await pending.take(within=self._limits.gather.total_seconds())
        return (changes, installed) if changes or installed is not None else None

    async def _keep(
        self, follower: _Follower, changes: list[PackageChange], installed: InstalledPackages | None
    ) -> bool:
        watched = follower.watched
        kept = await self._keeping.keep(watched, changes, installed, replica=self._replica)
        if kept is None:
            return False
        follower.after = kept.record.sequence
        for one in kept.changes:
            self._metrics.kept(one)
        self._metrics.missed(kept.missed)
        cost = len(changes) + (0 if installed is None else 1 + len(installed.packages) / self._limits.set_cost)
        if wait := follower.allowance.take(cost):
            self._metrics.throttled()
            log.warning("packages.throttled", sandbox=watched.sandbox, wait_seconds=round(wait, 1))
            await asyncio.sleep(wait)
        return True


@dataclass(slots=True)
class _Follower:
    """How far one call has come."""

    watched: Watched
    allowance: _Allowance
    after: int = field(init=False)

    def __post_init__(self) -> None:
        self.after = self.watched.after


class _Pending:
    """News one by one, where waiting for the next may be given up without losing it."""

    def __init__(self, news: AsyncGenerator[PackageNews, None]) -> None:
        self._news = news
        self._next: asyncio.Task[PackageNews | None] | None = None

    async def comes(self, *, within: float | None) -> bool:
        """Wait until there are news, or the end of them; False where there were none in so many seconds."""
        if self._next is None:
            self._next = asyncio.create_task(_following(self._news), name="package-news")
        done, _ = await asyncio.wait({self._next}, timeout=within)
        return bool(done)

    async def take(self, *, within: float | None) -> PackageNews | None:
        """Return the next news, or None at their end or when none came in so many seconds."""
        if not await self.comes(within=within) or self._next is None:
            return None
        following, self._next = self._next, None
        return following.result()

    async def close(self) -> None:
        """Stop waiting."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)


async def _following(news: AsyncGenerator[PackageNews, None]) -> PackageNews | None:
    return await anext(news, None)
