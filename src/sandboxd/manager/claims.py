"""Takes members out of pools: the compare-and-set inside Create's transaction, and the adoption that follows it.

Between the caller and its answer there is the database alone. That the backend learns whose the sandbox is comes after
the answer, and after a crash by whoever refills: the member's row stays, CLAIMED, until it is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.backend_port import Backend
from sandboxd.manager.changes import Changes
from sandboxd.manager.pool_ports import Claim
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.manager.startup import spec_of
from sandboxd.model.errors import SandboxdError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import ClientId, IncarnationId, SandboxId
from sandboxd.model.pool import TEMPLATE, PoolId
from sandboxd.model.sandbox import Sandbox, SandboxState, Tier
from sandboxd.model.sources import Clock

ADOPT_TIMEOUT: Final = timedelta(seconds=10)
CONCURRENCY: Final = 4
"""Adoptions at once: nobody waits for them, and claims must not wait behind them."""
QUIET_SECONDS: Final = 0.25
"""So long after a claim the refill still holds back: claims come in bursts."""
HOLDS: Final = 4
"""So many times that an adoption holds back at most while claims go on: nobody waits for it, and callers for claims."""
NOTE_SECONDS: Final = 30.0
"""How often the use of a pool is written at most."""

log = structlog.get_logger(__name__)


async def _nothing() -> None:
    """What comes first where nothing does."""


class PoolClaims:
    """Claims members for this replica."""

    def __init__(self, *, units: UnitsOfWork, backend: Backend, changes: Changes, clock: Clock, replica: str) -> None:
        self._units = units
        self._backend = backend
        self._changes = changes
        self._clock = clock
        self._replica = replica
        self._gate = asyncio.Semaphore(CONCURRENCY)
        self._tasks: dict[SandboxId, asyncio.Task[None]] = {}
        self._noted: dict[PoolId, float] = {}
        self._last = -QUIET_SECONDS
        self.on_claim: Callable[[], None] = lambda: None
        """Called after a claim or a miss is durable: the refill may have work."""

    @property
    def busy(self) -> bool:
        """Tell whether claims are going on: the refill waits for them."""
        return self._clock.monotonic() - self._last < QUIET_SECONDS

    def adopting(self, sandbox: SandboxId) -> bool:
        """Tell whether this process is about to tell the backend whose the sandbox is."""
        return sandbox in self._tasks

    async def take(self, work: UnitOfWork, client: ClientId, tier: Tier) -> Claim:
        """Take a member in the transaction of a Create, or say why there is none."""
        self._last = self._clock.monotonic()
        return await work.pools.claim(client, TEMPLATE, tier, replica=self._replica, at=self._clock.now())

    def follow(self, claim: Claim, sandbox: Sandbox) -> None:
        """Do what follows a Create that is durable: announce it, adopt it, note the use of its pool."""
        self.on_claim()
        if claim.member is not None:
            self._begin(sandbox.id, lambda: self._settle(claim), first=lambda: self._tell(sandbox.id))
        elif claim.pool is not None:
            self._begin(sandbox.id, lambda: self._note_use(claim.pool))

    def resume(self, sandbox: SandboxId, incarnation: IncarnationId) -> None:
        """Adopt what a replica that is no more has claimed, beside everything else."""
        self._begin(sandbox, lambda: self.adopt(sandbox, incarnation))

    async def adopt(self, sandbox: SandboxId, incarnation: IncarnationId) -> None:
        """Tell the backend whose a claimed member is, and forget the member. Safe to repeat.

        Raises:
            SandboxdError: It did not come about; the member's row stays.
        """
        async with self._units.begin() as work:
            found = (await work.sandboxes.find([sandbox])).get(sandbox)
        if found is not None and found.state is not SandboxState.TERMINATED:
            await self._backend.adopt(spec_of(found), incarnation, timeout=ADOPT_TIMEOUT)
            failpoint("claim.after_adopt")
        async with self._units.begin() as work:
            await work.pools.adopted(sandbox)
            await work.commit()

    async def drain(self) -> None:
        """Let what follows the claims so far end; what does not is for the refill of whoever comes next."""
        if self._tasks:
            await asyncio.wait(set(self._tasks.values()), timeout=ADOPT_TIMEOUT.total_seconds())

    def _begin(
        self,
        sandbox: SandboxId,
        work: Callable[[], Awaitable[None]],
        *,
        first: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        async def guarded() -> None:
            try:
                await first()
                async with self._gate:
                    await work()
            except SandboxdError as error:
                log.warning("pool.adoption_left", sandbox=sandbox, error=error.message)
            except Exception:  # a task guard: the refill adopts what is left
                log.exception("pool.adoption_broken", sandbox=sandbox)
            finally:
                self._tasks.pop(sandbox, None)

        self._tasks[sandbox] = asyncio.create_task(guarded(), name=f"adopt-{sandbox}")

    async def _tell(self, sandbox: SandboxId) -> None:
        """Announce a sandbox that was claimed, then wait until claims pause."""
        await self._changes.announce(sandbox)
        for _ in range(HOLDS):
            if not self.busy:
                break
            await asyncio.sleep(QUIET_SECONDS)

    async def _settle(self, claim: Claim) -> None:
        if claim.member is not None:
            await self.adopt(claim.member.sandbox, claim.member.incarnation)
        await self._note_use(claim.pool)

    async def _note_use(self, pool: PoolId | None) -> None:
        now = self._clock.monotonic()
        if pool is None or now - self._noted.get(pool, -NOTE_SECONDS) < NOTE_SECONDS:
            return
        self._noted[pool] = now
        async with self._units.begin() as work:
            await work.pools.note_use(pool, at=self._clock.now())
            await work.commit()
