"""Keeps pools at their size: starts members, replaces worn ones, ends surplus ones, repairs what a crash left.

One replica at a time refills, by a lease in the database; any replica claims. Every step is safe to repeat and every
member has its row before it has anything else, so whoever refills next goes on where the last one was killed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from typing import Any, Final

import structlog

from sandboxd.manager.backend_port import Backend, SandboxSpec
from sandboxd.manager.claims import PoolClaims
from sandboxd.manager.cold_starts import ColdStarts
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.patience import Patience
from sandboxd.manager.pool_metrics import PoolMetrics
from sandboxd.manager.pool_ports import PoolBoard, PoolWork, ShownPool
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.manager.tokens import TokenKeeper
from sandboxd.model.errors import SandboxdError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.pool import POOLED, EndReason, Member, MemberState, Pool, PoolId, RefillLimits, plan_pool
from sandboxd.model.sandbox import TIER_RESOURCES
from sandboxd.model.sources import Clock, IdSource

EVERY_SECONDS: Final = 1.0
REST: Final = 4.0
"""So many times as long as a look took comes no other: one reads every member, 85 ms of processor for 5,000, and each
member that gets ready asks for one."""
LONGEST_REST: Final = 2.0
LEASE: Final = timedelta(seconds=15)
INSPECT_SECONDS: Final = 5.0
"""How often members are compared with what the backend runs."""
START_TIMEOUT: Final = timedelta(seconds=120)
END_TIMEOUT: Final = timedelta(seconds=60)
HELD_SECONDS: Final = 2.0
"""So long at most the refill waits for claims to pause: under steady load there would be none left."""
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 60.0
"""Seconds between starts of a pool whose members fail to start; doubled each time."""
ENDS_AT_ONCE: Final = 4

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Refill:
    """The loop that keeps pools at their size."""

    units: UnitsOfWork
    backend: Backend
    tokens: TokenKeeper
    claims: PoolClaims
    cold: ColdStarts
    metrics: PoolMetrics
    clock: Clock
    ids: IdSource
    replica: str
    limits: RefillLimits = field(default_factory=RefillLimits)
    deeds: OwnDeeds = UNRECORDED
    board: PoolBoard | None = None
    """Where people look at pools beside the API."""
    _asked: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _starting: dict[SandboxId, asyncio.Task[None]] = field(default_factory=dict, init=False)
    _ending: dict[SandboxId, asyncio.Task[None]] = field(default_factory=dict, init=False)
    _patience: Patience[PoolId] = field(init=False)
    """Of pools whose last start failed."""
    _claimed: set[SandboxId] = field(default_factory=set, init=False)
    """Members that were CLAIMED at the last look, too: nobody adopts them."""
    _allowance: float = field(default=float("inf"), init=False)
    """Starts that may be begun at once; bounded to those of a second whenever it is read."""
    _counted_at: float = field(default=0.0, init=False)
    _inspect_at: float = field(default=0.0, init=False)
    _held_since: float | None = field(default=None, init=False)
    _leading: bool = field(default=False, init=False)
    _showing: asyncio.Task[None] | None = field(default=None, init=False)
    _unshown: str = field(default="", init=False)

    def wake(self) -> None:
        """Look at once: a member was claimed, or a pool was changed."""
        self._asked.set()

    def __post_init__(self) -> None:
        """Begin without a failure."""
        self._patience = Patience(self.clock, first=FIRST_DELAY, longest=LONGEST_DELAY)

    async def run(self) -> None:
        """Refill until cancelled."""
        self._counted_at = self.clock.monotonic()
        try:
            while True:
                self._asked.clear()
                began = self.clock.monotonic()
                try:
                    await self.look()
                except SandboxdError as error:
                    log.warning("pool.look_failed", error=error.message)
                except Exception:  # a loop: one bad look must not end all that follow
                    log.exception("pool.look_broken")
                await self._pause(rest_after(self.clock.monotonic() - began))
        finally:
            tasks = [*self._starting.values(), *self._ending.values(), *filter(None, [self._showing])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """Compare all pools with what is wanted, and begin what is missing; nothing where another replica refills."""
        async with self.units.begin() as work:
            leading = await work.pools.lead(self.replica, lease=LEASE)
            await work.commit()
        if leading is not self._leading:
            log.info("pool.refilling" if leading else "pool.not_refilling")
            self._leading = leading
        if not leading:
            self.metrics.members({})
            return
        async with self.units.begin() as work:
            pools = await work.pools.all()
        self.metrics.members(Counter(member.state for one in pools for member in one.members))
        await self._find_lost(pools)
        await self._repair(pools)
        wishes = [wish for one in pools if (wish := await self._plan(one))]
        await self._begin_starts(wishes)
        self._show(pools)

    async def settle(self) -> None:
        """Wait for everything that was begun; for tests, and for whoever stops."""
        while tasks := [*self._starting.values(), *self._ending.values()]:
            await asyncio.wait(tasks)

    def _show(self, pools: Sequence[PoolWork]) -> None:
        """Show the pools as they are to whoever looks elsewhere; nothing waits for it."""
        if self.board is None or (self._showing is not None and not self._showing.done()):
            return
        now, recipe, board = self.clock.now(), self.backend.describe().recipe, self.board
        shown = [ShownPool(pool=one.pool, wanted=one.pool.wanted(now) if one.may_act else 0) for one in pools]

        async def show() -> None:
            try:
                await board.show(shown, recipe=recipe)
                self._unshown = ""
            except SandboxdError as error:
                if error.message != self._unshown:  # said once, not with every look
                    log.warning("pool.not_shown", error=error.message)
                self._unshown = error.message
            except Exception:  # a task guard: the next look shows them
                log.exception("pool.showing_broken")

        self._showing = asyncio.create_task(show(), name="pools-show")

    async def _pause(self, rest: float) -> None:
        await asyncio.sleep(rest)
        try:
            async with asyncio.timeout(EVERY_SECONDS):
                await self._asked.wait()
                # After a claim the next look comes when claims have paused; looking costs the database, too.
                while self.claims.busy:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return

    async def _find_lost(self, pools: Sequence[PoolWork]) -> None:
        now = self.clock.monotonic()
        ready = [m for one in pools for m in one.members if m.state is MemberState.READY]
        if now < self._inspect_at or not ready:
            return
        self._inspect_at = now + INSPECT_SECONDS
        running = {(found.sandbox, life.incarnation) for found in await self.backend.list() for life in found.running}
        lost = [member.sandbox for member in ready if (member.sandbox, member.incarnation) not in running]
        if lost:
            log.warning("pool.members_lost", members=len(lost))
            await self._take_out(lost, EndReason.LOST)

    async def _repair(self, pools: Sequence[PoolWork]) -> None:
        """Go on with what was planned by a life of ours or of another replica that is no more."""
        claimed = set[SandboxId]()
        for one in pools:
            for member in one.members:
                if member.state is MemberState.STARTING and member.sandbox not in self._starting:
                    self._begin(self._starting, member.sandbox, self._start(one.pool, member))
                elif member.state is MemberState.ENDING and member.sandbox not in self._ending:
                    if len(self._ending) < ENDS_AT_ONCE:
                        self._begin(self._ending, member.sandbox, self._end(member))
                elif member.state is MemberState.CLAIMED and not self.claims.adopting(member.sandbox):
                    claimed.add(member.sandbox)
                    if member.sandbox in self._claimed:
                        self.claims.resume(member.sandbox, member.incarnation)
            if one.pool.deleting and not one.members:
                async with self.units.begin() as work:
                    await work.pools.remove(one.pool.id)
                    await work.commit()
        self._claimed = claimed

    async def _plan(self, one: PoolWork) -> tuple[Pool, int] | None:
        recipe = self.backend.describe().recipe
        plan = plan_pool(one.pool, one.members, recipe=recipe, may_act=one.may_act, at=self.clock.now())
        for reason in EndReason:
            chosen = [member.sandbox for member, why in plan.end if why is reason]
            if chosen:
                await self._take_out(chosen, reason)
        if not plan.make or self._patience.waits(one.pool.id):
            return None
        return one.pool, plan.make

    async def _take_out(self, members: Sequence[SandboxId], why: EndReason) -> None:
        async with self.units.begin() as work:
            ended = await work.pools.end(members, why)
            await work.commit()
        if ended:
            self.metrics.ended(why, len(ended))
            self.wake()

    async def _begin_starts(self, wishes: Sequence[tuple[Pool, int]]) -> None:
        room = self._room() if wishes and not self._held() else 0
        for pool in list(_in_turn(wishes))[:room]:
            member = Member(
                sandbox=SandboxId(self.ids.new("sbx")),
                incarnation=IncarnationId(self.ids.new("inc")),
                pool=pool.id,
                client=pool.client,
                tier=pool.tier,
                recipe=self.backend.describe().recipe,
                replica=self.replica,
                start_time=self.clock.now(),
            )
            async with self.units.begin() as work:
                await work.pools.add_member(member)
                await work.commit()
            self._allowance -= 1
            self._begin(self._starting, member.sandbox, self._start(pool, member))

    def _held(self) -> bool:
        """Tell whether callers come first: claims are going on, or Creates wait for places of their own."""
        now = self.clock.monotonic()
        if not self.claims.busy and not self.cold.waiting:
            self._held_since = None
            return False
        if self._held_since is None:
            self._held_since = now
        if now - self._held_since < HELD_SECONDS:
            return True
        self._held_since = now
        return False

    def _room(self) -> int:
        now = self.clock.monotonic()
        gained = (now - self._counted_at) * self.limits.per_second
        self._allowance = min(self._allowance + gained, max(self.limits.per_second, 1.0))
        self._counted_at = now
        return max(0, min(self.limits.at_once - len(self._starting), int(self._allowance)))

    async def _start(self, pool: Pool, member: Member) -> None:
        began = self.clock.monotonic()
        failpoint("refill.after_plan")
        try:
            async with self.deeds.recorded("Pool/Start", client=member.client, sandbox=member.sandbox):
                endpoint = await self.backend.start(_spec(member), member.incarnation, timeout=START_TIMEOUT)
                failpoint("refill.after_start")
                await self.tokens.give_member(member, endpoint)
                failpoint("refill.after_token")
        except SandboxdError as error:
            self._patience.failed(pool.id)
            log.warning("pool.start_failed", pool=pool.id, sandbox=member.sandbox, error=error.message)
            await self._take_out([member.sandbox], EndReason.FAILED)
            return
        async with self.units.begin() as work:
            ready = await work.pools.ready(member.sandbox, endpoint, replica=self.replica, at=self.clock.now())
            await work.commit()
        if ready:
            self._patience.forget(pool.id)
            self.metrics.refilled(self.clock.monotonic() - began)
            self.wake()
        else:
            await self._clear_away(member.sandbox)

    async def _clear_away(self, sandbox: SandboxId) -> None:
        """End what came up although nobody wants it any more; another replica had taken it out meanwhile."""
        async with self.units.begin() as work:
            # Only what has neither a member's row nor a sandbox's: a sandbox's row is never deleted, so that something
            # that was claimed in the meantime is never taken for a leftover.
            known = sandbox in await work.pools.known([sandbox]) or sandbox in await work.sandboxes.find([sandbox])
        if not known:
            await self.backend.erase(sandbox, timeout=END_TIMEOUT)

    async def _end(self, member: Member) -> None:
        failpoint("refill.after_end")
        async with self.deeds.recorded("Pool/End", client=member.client, sandbox=member.sandbox):
            await self.backend.erase(member.sandbox, timeout=END_TIMEOUT)
        failpoint("refill.after_erase")
        async with self.units.begin() as work:
            await work.pools.remove_member(member.sandbox)
            await work.commit()
        self.wake()

    def _begin(
        self, tasks: dict[SandboxId, asyncio.Task[None]], sandbox: SandboxId, work: Coroutine[Any, Any, None]
    ) -> None:
        async def guarded() -> None:
            try:
                await work
            except SandboxdError as error:
                log.warning("pool.step_failed", sandbox=sandbox, error=error.message)
            except Exception:  # a task guard: the next look repeats the step
                log.exception("pool.step_broken", sandbox=sandbox)
            finally:
                tasks.pop(sandbox, None)

        tasks[sandbox] = asyncio.create_task(guarded(), name=f"pool-{sandbox}")


def rest_after(seconds: float) -> float:
    """Seconds without a look after one that took so long: whoever asks, looking is a fifth of the time at most."""
    return min(seconds * REST, LONGEST_REST)


def _spec(member: Member) -> SandboxSpec:
    return SandboxSpec(
        sandbox=member.sandbox,
        client=member.client,
        freelancer=POOLED,
        resources=TIER_RESOURCES[member.tier],
        tier=member.tier,
        pool=member.pool,
        recipe=member.recipe,
    )


def _in_turn(wishes: Sequence[tuple[Pool, int]]) -> Iterator[Pool]:
    """One member for each pool, then the next for each: no pool waits for another's whole wish."""
    for row in zip_longest(*([pool] * number for pool, number in wishes)):
        yield from (pool for pool in row if pool is not None)
