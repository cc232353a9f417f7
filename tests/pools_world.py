"""Pools in the manager's world, and in the one of a real database."""

from __future__ import annotations

from datetime import timedelta

from prometheus_client import CollectorRegistry

from sandboxd.manager.lifecycle_metrics import LifecycleMetrics
from sandboxd.manager.metrics import ManagerMetrics
from sandboxd.manager.once import Once
from sandboxd.manager.pool_ports import PoolWork
from sandboxd.manager.pools import Pools, PoolWish
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.manager.sandboxes import ManagerCore, SandboxManager
from sandboxd.manager.tokens import ModelEndpointTarget
from sandboxd.manager.tools import ManagerTools
from sandboxd.model.caller import Caller
from sandboxd.model.pool import Member, MemberState, PoolCounts, PoolId, RefillLimits, StartLimits
from sandboxd.model.sandbox import Tier
from sandboxd.model.sources import Clock, IdSource
from tests.eventually import eventually
from tests.fakes.lifecycle import FakeDuties
from tests.fakes.manager import FakeBackend, FakeConversations, FakeTokens, FakeWakeups
from tests.fakes.packages import FakePackageSource
from tests.manager_world import GATEWAY, a_caller, a_request

QUICK = RefillLimits(at_once=50, per_second=1000.0)


class PoolReplica:
    """One replica over any database, with a backend in memory."""

    def __init__(
        self,
        units: UnitsOfWork,
        backend: FakeBackend,
        *,
        clock: Clock,
        ids: IdSource,
        name: str = "first",
        starts: StartLimits | None = None,
        refill: RefillLimits = QUICK,
    ) -> None:
        self.units, self.backend, self.clock = units, backend, clock
        self.tools = ManagerTools(
            units=units,
            backend=backend,
            connector=backend.connector,
            wakeups=FakeWakeups(),
            tokens=FakeTokens(clock),
            model_endpoint=ModelEndpointTarget(base_url=GATEWAY),
            metrics=ManagerMetrics(CollectorRegistry()),
            clock=clock,
            ids=ids,
            replica=name,
            duties=FakeDuties({}, replica=name),
            lifecycle_metrics=LifecycleMetrics(CollectorRegistry()),
            starts=starts or StartLimits(),
            refill=refill,
            packages=FakePackageSource(),
        )
        self.core = ManagerCore(self.tools)
        self.manager = SandboxManager(core=self.core, conversations=FakeConversations())
        self.refill = self.manager.refill
        self.pools = Pools(
            units=units,
            once=Once(units=units, clock=clock),
            clock=clock,
            ids=ids,
            changed=self.refill.wake,
            members_per_client=5000,
        )

    async def given_pool(
        self, target: int, *, least: int = 0, most: int = 0, caller: Caller | None = None, tier: Tier = Tier.BASIC
    ) -> PoolId:
        """Make a pool; nothing is in it yet."""
        made: list[PoolId] = []

        def encode(status: object) -> bytes:
            made.append(status.pool.id)  # type: ignore[attr-defined]  # of a PoolStatus
            return b""

        wish = PoolWish(min=least, target=target, max=most or None)
        await self.pools.create(a_request(caller), tier, wish, encode=encode)
        return made[-1]

    async def fill(self) -> None:
        """Look until nothing is left to do."""
        for _ in range(10):
            await self.refill.look()
            await self.refill.settle()

    async def counts(self) -> PoolCounts:
        """Members of the first client's first pool by state."""
        return (await self.pools.list(a_caller()))[0].counts

    async def work(self) -> list[PoolWork]:
        async with self.units.begin() as work:
            return list(await work.pools.all())

    async def members(self) -> list[Member]:
        return [member for one in await self.work() for member in one.members]

    async def adopted(self) -> None:
        """Wait until every claimed member's backend knows whose it is."""

        async def none_left() -> bool:
            return not any(member.state is MemberState.CLAIMED for member in await self.members())

        await eventually(none_left)


MINUTE = timedelta(minutes=1)
