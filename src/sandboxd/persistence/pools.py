"""The rows of pools and their members. Used within one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.pool_ports import Claim, PoolRepository, PoolWork
from sandboxd.model.client import AccountState
from sandboxd.model.ids import ClientId, IncarnationId, SandboxId
from sandboxd.model.pool import (
    EndReason,
    Member,
    MemberState,
    Pool,
    PoolId,
    PoolSize,
    PoolStatus,
    count_members,
)
from sandboxd.model.pool_errors import PoolExistsError, PoolNotFoundError, StalePoolEtagError
from sandboxd.model.sandbox import AgentEndpoint, Tier
from sandboxd.model.startup import MissReason
from sandboxd.persistence.duties import taking
from sandboxd.persistence.errors import translated
from sandboxd.persistence.sandbox_rows import Row, Values
from sandboxd.persistence.tables import ClientRow, PoolMemberRow, PoolRow
from sandboxd.persistence.tables.base import table

_POOLS: Final = table(PoolRow)
_MEMBERS: Final = table(PoolMemberRow)
_CLIENTS: Final = table(ClientRow)
DUTY: Final = "pools"
_ALIVE: Final = (MemberState.STARTING.value, MemberState.READY.value)
# The compare-and-set of a claim, its pool and the reason of a miss in one statement. Own members first, each part by
# the index of ready members; a member that another transaction is about to take is passed over.
_CLAIM: Final = """
    WITH pool AS MATERIALIZED (
        SELECT id, target_size, deleting FROM pools WHERE client = :client AND template = :template AND tier = :tier
    ), own AS MATERIALIZED (
        SELECT sandbox FROM pool_members
        WHERE pool = (SELECT id FROM pool WHERE NOT deleting) AND state = 'READY' AND replica = :replica
        ORDER BY ready_time LIMIT 1 FOR UPDATE SKIP LOCKED
    ), other AS MATERIALIZED (
        SELECT sandbox FROM pool_members
        WHERE pool = (SELECT id FROM pool WHERE NOT deleting) AND state = 'READY' AND replica <> :replica
            AND NOT EXISTS (SELECT 1 FROM own)
        ORDER BY ready_time LIMIT 1 FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE pool_members SET state = 'CLAIMED'
        WHERE state = 'READY' AND sandbox = (SELECT sandbox FROM own UNION ALL SELECT sandbox FROM other LIMIT 1)
        RETURNING *
    )
    SELECT pool.id AS pool_id, pool.deleting OR pool.target_size = 0 AS off, taken.*,
        taken.sandbox IS NULL AND EXISTS (
            SELECT 1 FROM pool_members WHERE pool_members.pool = pool.id AND state = 'STARTING'
        ) AS filling
    FROM pool LEFT JOIN taken ON true
"""
_LEAD: Final = taking(f"'{DUTY}'", holder=":replica", lease=":lease")


class PostgresPoolRepository(PoolRepository):
    """Pools of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def add(self, pool: Pool) -> None:
        statement = insert(_POOLS).values(_pool_values(pool)).on_conflict_do_nothing()
        with translated():
            made = (await self._connection.execute(statement)).rowcount
        if not made:
            c = _POOLS.c
            where = (c.client == pool.client, c.template == pool.template, c.tier == pool.tier.value)
            with translated():
                there = (await self._connection.execute(select(c.id).where(*where))).scalar_one()
            raise PoolExistsError(there, template=pool.template, tier=pool.tier.value)

    @override
    async def get(self, pool: PoolId, *, client: ClientId, for_update: bool = False) -> Pool:
        statement = select(_POOLS).where(_POOLS.c.id == pool, _POOLS.c.client == client)
        if for_update:
            statement = statement.with_for_update(key_share=True)
        with translated():
            row = (await self._connection.execute(statement)).mappings().one_or_none()
        if row is None:
            raise PoolNotFoundError(pool)
        return _read_pool(row)

    @override
    async def save(self, pool: Pool) -> None:
        c = _POOLS.c
        statement = update(_POOLS).values(_pool_values(pool)).where(c.id == pool.id, c.version == pool.version - 1)
        with translated():
            changed = (await self._connection.execute(statement)).rowcount
        if not changed:
            raise StalePoolEtagError(pool.id)

    @override
    async def list(self, client: ClientId, *, at: datetime) -> Sequence[PoolStatus]:
        found = await self._read(client)
        return [PoolStatus(pool=pool, counts=count_members(members), wanted=pool.wanted(at)) for pool, members in found]

    @override
    async def total(self, client: ClientId, *, but: PoolId | None = None) -> int:
        c = _POOLS.c
        statement = select(func.coalesce(func.sum(c.max_size), 0)).where(c.client == client, c.id != (but or ""))
        with translated():
            found: int = (await self._connection.execute(statement)).scalar_one()
        return found

    @override
    async def claim(self, client: ClientId, template: str, tier: Tier, *, replica: str, at: datetime) -> Claim:
        values = {"client": client, "template": template, "tier": tier.value, "replica": replica}
        with translated():
            row = (await self._connection.execute(text(_CLAIM), values)).mappings().one_or_none()
        if row is None:
            return Claim(miss=MissReason.NO_POOL)
        pool = PoolId(row["pool_id"])
        if row["sandbox"] is not None:
            return Claim(pool=pool, member=_read_member(row))
        if row["off"]:
            return Claim(pool=pool, miss=MissReason.POOL_OFF)
        return Claim(pool=pool, miss=MissReason.POOL_FILLING if row["filling"] else MissReason.POOL_EMPTY)

    @override
    async def adopted(self, sandbox: SandboxId) -> None:
        await self._forget(sandbox, MemberState.CLAIMED)

    @override
    async def note_use(self, pool: PoolId, *, at: datetime) -> None:
        statement = update(_POOLS).values(use_time=at).where(_POOLS.c.id == pool, _POOLS.c.use_time < at)
        with translated():
            await self._connection.execute(statement)

    @override
    async def lead(self, replica: str, *, lease: timedelta) -> bool:
        with translated():
            found = await self._connection.execute(text(_LEAD), {"replica": replica, "lease": lease})
        return found.rowcount == 1

    @override
    async def all(self) -> Sequence[PoolWork]:
        found = await self._read(None)
        c = _CLIENTS.c
        clients = {pool.client for pool, _ in found}
        statement = select(c.id).where(c.id.in_(clients), c.state == AccountState.ACTIVE.value)
        with translated():
            active = set((await self._connection.execute(statement)).scalars())
        return [PoolWork(pool=pool, members=members, may_act=pool.client in active) for pool, members in found]

    @override
    async def add_member(self, member: Member) -> None:
        with translated():
            await self._connection.execute(insert(_MEMBERS).values(_member_values(member)))

    @override
    async def ready(self, sandbox: SandboxId, endpoint: AgentEndpoint, *, replica: str, at: datetime) -> bool:
        c = _MEMBERS.c
        values: Values = {
            "state": MemberState.READY.value,
            "host": endpoint.host,
            "port": endpoint.port,
            "server_name": endpoint.server_name,
            "replica": replica,
            "ready_time": at,
        }
        statement = update(_MEMBERS).values(values)
        with translated():
            found = await self._connection.execute(
                statement.where(c.sandbox == sandbox, c.state == MemberState.STARTING.value)
            )
        return found.rowcount == 1

    @override
    async def end(self, members: Collection[SandboxId], why: EndReason) -> Sequence[SandboxId]:
        c = _MEMBERS.c
        # In order, so that two who end the same members do not wait for each other.
        locked = select(c.sandbox).where(c.sandbox.in_(members), c.state.in_(_ALIVE)).order_by(c.sandbox)
        chosen = locked.with_for_update().cte("chosen")
        statement = (
            update(_MEMBERS)
            .values(state=MemberState.ENDING.value, end_reason=why.value)
            .where(c.sandbox.in_(select(chosen.c.sandbox)))
            .returning(c.sandbox)
        )
        with translated():
            return [SandboxId(name) for name in (await self._connection.execute(statement)).scalars()]

    @override
    async def remove_member(self, sandbox: SandboxId) -> None:
        await self._forget(sandbox, MemberState.ENDING)

    @override
    async def remove(self, pool: PoolId) -> bool:
        members = select(_MEMBERS.c.sandbox).where(_MEMBERS.c.pool == pool)
        statement = delete(_POOLS).where(_POOLS.c.id == pool, _POOLS.c.deleting, ~members.exists())
        with translated():
            return (await self._connection.execute(statement)).rowcount == 1

    @override
    async def abandon(self, client: ClientId) -> None:
        c = _POOLS.c
        statement = update(_POOLS).values(deleting=True, version=c.version + 1)
        with translated():
            await self._connection.execute(statement.where(c.client == client, ~c.deleting))

    @override
    async def waiting(self) -> Sequence[Member]:
        statement = select(_MEMBERS).where(_MEMBERS.c.state == MemberState.READY.value)
        with translated():
            return [_read_member(row) for row in (await self._connection.execute(statement)).mappings()]

    @override
    async def known(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, Member]:
        statement = select(_MEMBERS).where(_MEMBERS.c.sandbox == func.any(sorted(sandboxes)))
        with translated():
            found = [_read_member(row) for row in (await self._connection.execute(statement)).mappings()]
        return {member.sandbox: member for member in found}

    async def _forget(self, sandbox: SandboxId, state: MemberState) -> None:
        c = _MEMBERS.c
        with translated():
            await self._connection.execute(delete(_MEMBERS).where(c.sandbox == sandbox, c.state == state.value))

    async def _read(self, client: ClientId | None) -> Sequence[tuple[Pool, Sequence[Member]]]:
        pools = select(_POOLS).order_by(_POOLS.c.client, _POOLS.c.template, _POOLS.c.tier)
        members = select(_MEMBERS).order_by(_MEMBERS.c.sandbox)
        if client is not None:
            pools = pools.where(_POOLS.c.client == client)
            members = members.where(_MEMBERS.c.client == client)
        with translated():
            found = [_read_pool(row) for row in (await self._connection.execute(pools)).mappings()]
            rows = (await self._connection.execute(members)).mappings().all() if found else ()
        by_pool: defaultdict[str, list[Member]] = defaultdict(list)
        for row in rows:
            by_pool[row["pool"]].append(_read_member(row))
        return [(pool, by_pool[pool.id]) for pool in found]


def _pool_values(pool: Pool) -> Values:
    return {
        "id": pool.id,
        "client": pool.client,
        "template": pool.template,
        "tier": pool.tier.value,
        "min_size": pool.size.min,
        "target_size": pool.size.target,
        "max_size": pool.size.max,
        "idle_seconds": int(pool.idle_timeout.total_seconds()),
        "age_seconds": int(pool.max_age.total_seconds()),
        "deleting": pool.deleting,
        "create_time": pool.create_time,
        "update_time": pool.update_time,
        "use_time": pool.use_time,
        "version": pool.version,
    }


def _read_pool(row: Row) -> Pool:
    return Pool(
        id=PoolId(row["id"]),
        client=ClientId(row["client"]),
        template=row["template"],
        tier=Tier(row["tier"]),
        size=PoolSize(min=row["min_size"], target=row["target_size"], max=row["max_size"]),
        idle_timeout=timedelta(seconds=row["idle_seconds"]),
        max_age=timedelta(seconds=row["age_seconds"]),
        deleting=row["deleting"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        use_time=row["use_time"],
        version=row["version"],
    )


def _member_values(member: Member) -> Values:
    endpoint = member.endpoint
    return {
        "sandbox": member.sandbox,
        "incarnation": member.incarnation,
        "pool": member.pool,
        "client": member.client,
        "tier": member.tier.value,
        "state": member.state.value,
        "host": endpoint.host if endpoint else None,
        "port": endpoint.port if endpoint else None,
        "server_name": endpoint.server_name if endpoint else None,
        "recipe": member.recipe,
        "replica": member.replica,
        "start_time": member.start_time,
        "ready_time": member.ready_time,
        "end_reason": member.end_reason.value if member.end_reason else None,
    }


def _read_member(row: Row) -> Member:
    endpoint = None
    if row["host"] is not None:
        endpoint = AgentEndpoint(host=row["host"], port=row["port"], server_name=row["server_name"])
    return Member(
        sandbox=SandboxId(row["sandbox"]),
        incarnation=IncarnationId(row["incarnation"]),
        pool=PoolId(row["pool"]),
        client=ClientId(row["client"]),
        tier=Tier(row["tier"]),
        state=MemberState(row["state"]),
        endpoint=endpoint,
        recipe=row["recipe"],
        replica=row["replica"],
        start_time=row["start_time"],
        ready_time=row["ready_time"],
        end_reason=EndReason(row["end_reason"]) if row["end_reason"] else None,
    )
