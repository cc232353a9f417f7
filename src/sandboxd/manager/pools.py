"""Makes, shows, changes and deletes pools. What becomes of their members is the refill's business (`refill.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from sandboxd.manager.once import Once
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.model.caller import Caller, Request
from sandboxd.model.client import AccountState, Client
from sandboxd.model.client_errors import ClientDeletedError, ClientUnknownError, QuotaExceededError
from sandboxd.model.errors import FieldViolation, InvalidRequestError, QuotaViolation
from sandboxd.model.ids import ClientId
from sandboxd.model.pool import DEFAULT_AGE, DEFAULT_IDLE, TEMPLATE, Pool, PoolCounts, PoolId, PoolSize, PoolStatus
from sandboxd.model.pool_errors import PoolNotFoundError, StalePoolEtagError
from sandboxd.model.sandbox import Tier
from sandboxd.model.sources import Clock, IdSource

SHORTEST: Final = timedelta(minutes=1)
MEMBERS_PER_CLIENT: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWish:
    """Numbers of a pool; None is left as it is, or at its default."""

    min: int | None = None
    target: int | None = None
    max: int | None = None
    idle_timeout: timedelta | None = None
    max_age: timedelta | None = None


class Pools:
    """The pools of clients."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        once: Once,
        clock: Clock,
        ids: IdSource,
        changed: Callable[[], None],
        explicit: bool = False,
        members_per_client: int = MEMBERS_PER_CLIENT,
    ) -> None:
        """Take what it works with.

        Args:
            units: The database.
            once: Runs changes with their request id.
            clock: The time.
            ids: New ids.
            changed: Called when a pool has changed: the refill may have work.
            explicit: Whether clients must be made before they act.
            members_per_client: The maxima of a client's pools, added up, cannot be more.
        """
        self._units = units
        self._once = once
        self._clock = clock
        self._ids = ids
        self._changed = changed
        self._explicit = explicit
        self._members_per_client = members_per_client

    async def create(
        self, request: Request, tier: Tier, wish: PoolWish, *, encode: Callable[[PoolStatus], bytes]
    ) -> bytes:
        """Make a pool.

        Raises:
            InvalidRequestError: The numbers do not go together.
            PoolExistsError: The client has one for this template and tier.
            QuotaExceededError: The client's pools would be larger than they may be.
        """
        client = request.caller.client

        async def change(work: UnitOfWork) -> PoolStatus:
            now = self._clock.now()
            await self._lock(work, client)
            pool = Pool(
                id=PoolId(self._ids.new("pol")),
                client=client,
                template=TEMPLATE,
                tier=tier,
                size=_size(PoolSize(), wish),
                idle_timeout=_span("idle_timeout", wish.idle_timeout, DEFAULT_IDLE),
                max_age=_span("max_age", wish.max_age, DEFAULT_AGE),
                create_time=now,
                update_time=now,
                use_time=now,
            )
            await self._require_room(work, pool)
            await work.pools.add(pool)
            return PoolStatus(pool=pool, counts=PoolCounts(), wanted=pool.wanted(now))

        answer = await self._once.run(request, "CreatePool", change, encode=encode)
        self._changed()
        return answer

    async def get(self, caller: Caller, pool: PoolId) -> PoolStatus:
        """Return one pool of the caller's client.

        Raises:
            PoolNotFoundError: It has none of this id.
        """
        for status in await self.list(caller):
            if status.pool.id == pool:
                return status
        raise PoolNotFoundError(pool)

    async def list(self, caller: Caller) -> Sequence[PoolStatus]:
        """Return the pools of the caller's client, by template and tier."""
        async with self._units.begin() as work:
            return await work.pools.list(caller.client, at=self._clock.now())

    async def update(
        self,
        request: Request,
        pool: PoolId,
        wish: PoolWish,
        *,
        etag: str,
        encode: Callable[[PoolStatus], bytes],
    ) -> bytes:
        """Change the numbers of a pool.

        Raises:
            PoolNotFoundError: The client has none of this id, or it is being deleted.
            StalePoolEtagError: `etag` is given and not the present one.
            InvalidRequestError: The numbers do not go together.
            QuotaExceededError: The client's pools would be larger than they may be.
        """
        client = request.caller.client

        async def change(work: UnitOfWork) -> PoolStatus:
            now = self._clock.now()
            found = await work.pools.get(pool, client=client)  # not found is not found also without a client's row
            await self._lock(work, client)
            found = await work.pools.get(pool, client=client, for_update=True)
            if found.deleting:
                raise PoolNotFoundError(pool)
            if etag and etag != str(found.version):
                raise StalePoolEtagError(pool)
            changed = found.resized(
                _size(found.size, wish),
                idle_timeout=_span("idle_timeout", wish.idle_timeout, found.idle_timeout),
                max_age=_span("max_age", wish.max_age, found.max_age),
                at=now,
            )
            await self._require_room(work, changed)
            await work.pools.save(changed)
            status = next(one for one in await work.pools.list(client, at=now) if one.pool.id == pool)
            return replace(status, pool=changed)

        answer = await self._once.run(request, "UpdatePool", change, encode=encode)
        self._changed()
        return answer

    async def delete(self, request: Request, pool: PoolId, *, encode: Callable[[None], bytes]) -> bytes:
        """Begin to delete a pool; its members end in the background.

        Raises:
            PoolNotFoundError: The client has none of this id.
        """

        async def change(work: UnitOfWork) -> None:
            found = await work.pools.get(pool, client=request.caller.client, for_update=True)
            if not found.deleting:
                at = self._clock.now()
                await work.pools.save(replace(found, deleting=True, update_time=at, version=found.version + 1))

        answer = await self._once.run(request, "DeletePool", change, encode=encode)
        self._changed()
        return answer

    async def _lock(self, work: UnitOfWork, client: ClientId) -> None:
        """Hold the client's row, which makes the sum of its pools true until the commit."""
        found = await work.clients.find(client, for_update=True)
        if found is None:
            if self._explicit:
                raise ClientUnknownError(client)
            now = self._clock.now()
            await work.clients.add(Client(id=client, create_time=now, update_time=now))
        elif found.state in (AccountState.DELETING, AccountState.DELETED):
            raise ClientDeletedError(client)

    async def _require_room(self, work: UnitOfWork, pool: Pool) -> None:
        others = await work.pools.total(pool.client, but=pool.id)
        if others + pool.size.max > self._members_per_client:
            raise QuotaExceededError(
                [
                    QuotaViolation(
                        subject=f"clients/{pool.client}",
                        quota="pool_members",
                        limit=self._members_per_client,
                        value=others,
                        description=f"the maxima of all pools may be {self._members_per_client} together; other pools "
                        f"have {others}, and this one would have {pool.size.max}.",
                    )
                ]
            )


def _size(before: PoolSize, wish: PoolWish) -> PoolSize:
    least = before.min if wish.min is None else wish.min
    target = before.target if wish.target is None else wish.target
    most = before.max if wish.max is None else wish.max
    # Who says nothing of the maximum, or of the target, means one that goes with the rest.
    if wish.target is None:
        target = max(target, least)
    size = PoolSize(min=least, target=target, max=max(most, target) if not wish.max else most)
    if not size.valid:
        text = f"must be such that min <= target <= max; they are {size.min}, {size.target} and {size.max}"
        raise InvalidRequestError(
            "The numbers of the pool do not go together.",
            violations=[FieldViolation(field="pool.target", description=text)],
        )
    return size


def _span(name: str, wish: timedelta | None, before: timedelta) -> timedelta:
    if wish is None:
        return before
    if wish < SHORTEST:
        raise InvalidRequestError(
            f"The pool's {name} is too short.",
            violations=[FieldViolation(field=f"pool.{name}", description="must be at least a minute")],
        )
    return wish
