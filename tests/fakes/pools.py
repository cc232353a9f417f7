"""Warm pools in memory, as part of a `FakeUnits`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from typing_extensions import override

from sandboxd.manager.pool_ports import Claim, PoolRepository, PoolWork
from sandboxd.model.client import AccountState, Client
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.pool import EndReason, Member, MemberState, Pool, PoolId, PoolStatus, count_members
from sandboxd.model.pool_errors import PoolExistsError, PoolNotFoundError, StalePoolEtagError
from sandboxd.model.sandbox import AgentEndpoint, Tier
from sandboxd.model.startup import MissReason

ALIVE = (MemberState.STARTING, MemberState.READY)


class _Rows(Protocol):
    clients: dict[ClientId, Client]
    pools: dict[PoolId, Pool]
    members: dict[SandboxId, Member]
    duties: dict[str, tuple[str, datetime]]


class _Work(Protocol):
    async def read(self) -> _Rows: ...
    async def write(self) -> _Rows: ...
    def now(self) -> datetime: ...
    def lives(self, replica: str) -> bool: ...


class FakePoolRepository(PoolRepository):
    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def add(self, pool: Pool) -> None:
        rows = await self.work.write()
        assert pool.client in rows.clients, "no such client"
        target = (pool.client, pool.template, pool.tier)
        for there in rows.pools.values():
            if (there.client, there.template, there.tier) == target:
                raise PoolExistsError(there.id, template=pool.template, tier=pool.tier.value)
        rows.pools[pool.id] = pool

    @override
    async def get(self, pool: PoolId, *, client: ClientId, for_update: bool = False) -> Pool:
        rows = await (self.work.write() if for_update else self.work.read())
        found = rows.pools.get(pool)
        if found is None or found.client != client:
            raise PoolNotFoundError(pool)
        return found

    @override
    async def save(self, pool: Pool) -> None:
        rows = await self.work.write()
        before = rows.pools.get(pool.id)
        if before is None or before.version != pool.version - 1:
            raise StalePoolEtagError(pool.id)
        rows.pools[pool.id] = pool

    @override
    async def list(self, client: ClientId, *, at: datetime) -> Sequence[PoolStatus]:
        rows = await self.work.read()
        found = sorted(
            (pool for pool in rows.pools.values() if pool.client == client),
            key=lambda pool: (pool.template, pool.tier.value),
        )
        return [
            PoolStatus(pool=pool, counts=count_members(_of(rows, pool.id)), wanted=pool.wanted(at)) for pool in found
        ]

    @override
    async def total(self, client: ClientId, *, but: PoolId | None = None) -> int:
        rows = await self.work.read()
        return sum(pool.size.max for pool in rows.pools.values() if pool.client == client and pool.id != but)

    @override
    async def claim(self, client: ClientId, template: str, tier: Tier, *, replica: str, at: datetime) -> Claim:
        rows = await self.work.write()
        pool = next(
            (p for p in rows.pools.values() if (p.client, p.template, p.tier) == (client, template, tier)), None
        )
        if pool is None:
            return Claim(miss=MissReason.NO_POOL)
        members = _of(rows, pool.id)
        ready = [member for member in members if member.state is MemberState.READY and not pool.deleting]
        ready.sort(key=lambda member: (member.replica != replica, member.ready_time))
        if ready:
            taken = replace(ready[0], state=MemberState.CLAIMED)
            rows.members[taken.sandbox] = taken
            return Claim(pool=pool.id, member=taken)
        if pool.deleting or not pool.size.target:
            return Claim(pool=pool.id, miss=MissReason.POOL_OFF)
        filling = any(member.state is MemberState.STARTING for member in members)
        return Claim(pool=pool.id, miss=MissReason.POOL_FILLING if filling else MissReason.POOL_EMPTY)

    @override
    async def adopted(self, sandbox: SandboxId) -> None:
        await self._forget(sandbox, MemberState.CLAIMED)

    @override
    async def note_use(self, pool: PoolId, *, at: datetime) -> None:
        rows = await self.work.write()
        found = rows.pools.get(pool)
        if found is not None and found.use_time < at:
            rows.pools[pool] = replace(found, use_time=at)

    @override
    async def lead(self, replica: str, *, lease: timedelta) -> bool:
        rows = await self.work.write()
        holder, until = rows.duties.get("pools", (replica, self.work.now()))
        if holder != replica and until > self.work.now() and self.work.lives(holder):
            return False
        rows.duties["pools"] = (replica, self.work.now() + lease)
        return True

    @override
    async def all(self) -> Sequence[PoolWork]:
        rows = await self.work.read()
        return [
            PoolWork(
                pool=pool,
                members=_of(rows, pool.id),
                may_act=rows.clients[pool.client].state is AccountState.ACTIVE,
            )
            for pool in sorted(rows.pools.values(), key=lambda pool: (pool.client, pool.template, pool.tier.value))
        ]

    @override
    async def add_member(self, member: Member) -> None:
        rows = await self.work.write()
        assert member.pool in rows.pools, "no such pool"
        rows.members[member.sandbox] = member

    @override
    async def ready(self, sandbox: SandboxId, endpoint: AgentEndpoint, *, replica: str, at: datetime) -> bool:
        rows = await self.work.write()
        found = rows.members.get(sandbox)
        if found is None or found.state is not MemberState.STARTING:
            return False
        rows.members[sandbox] = replace(
            found, state=MemberState.READY, endpoint=endpoint, replica=replica, ready_time=at
        )
        return True

    @override
    async def end(self, members: Collection[SandboxId], why: EndReason) -> Sequence[SandboxId]:
        rows = await self.work.write()
        ended = [name for name in sorted(members) if name in rows.members and rows.members[name].state in ALIVE]
        for name in ended:
            rows.members[name] = replace(rows.members[name], state=MemberState.ENDING, end_reason=why)
        return ended

    @override
    async def remove_member(self, sandbox: SandboxId) -> None:
        await self._forget(sandbox, MemberState.ENDING)

    @override
    async def remove(self, pool: PoolId) -> bool:
        rows = await self.work.write()
        found = rows.pools.get(pool)
        if found is None or not found.deleting or _of(rows, pool):
            return False
        del rows.pools[pool]
        return True

    @override
    async def abandon(self, client: ClientId) -> None:
        rows = await self.work.write()
        for pool in [pool for pool in rows.pools.values() if pool.client == client and not pool.deleting]:
            rows.pools[pool.id] = replace(pool, deleting=True, version=pool.version + 1)

    @override
    async def waiting(self) -> Sequence[Member]:
        rows = await self.work.read()
        return [member for member in rows.members.values() if member.state is MemberState.READY]

    @override
    async def known(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, Member]:
        rows = await self.work.read()
        return {name: rows.members[name] for name in sandboxes if name in rows.members}

    async def _forget(self, sandbox: SandboxId, state: MemberState) -> None:
        rows = await self.work.write()
        if sandbox in rows.members and rows.members[sandbox].state is state:
            del rows.members[sandbox]


def _of(rows: _Rows, pool: PoolId) -> Sequence[Member]:
    return sorted((member for member in rows.members.values() if member.pool == pool), key=lambda one: one.sandbox)
