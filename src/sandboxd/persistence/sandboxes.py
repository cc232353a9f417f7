"""The rows of sandboxes and their incarnations. Used within one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, and_, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.ports import (
    MAX_PAGE_SIZE,
    IncarnationRepository,
    Life,
    RequestRecord,
    SandboxFilter,
    SandboxOrder,
    SandboxRepository,
)
from sandboxd.model.errors import AlreadyExistsError, ConflictError, SandboxNotFoundError
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.model.sandbox import Incarnation, Sandbox, SandboxState
from sandboxd.persistence.births import insert_new
from sandboxd.persistence.errors import translated
from sandboxd.persistence.newer import read_many, read_one
from sandboxd.persistence.paging import make_token, read_token
from sandboxd.persistence.sandbox_rows import incarnation_values, read_incarnation, read_sandbox, sandbox_values
from sandboxd.persistence.tables import IncarnationRow, SandboxRow, UsageIntervalRow
from sandboxd.persistence.tables.base import table

_SANDBOXES: Final = table(SandboxRow)
_INCARNATIONS: Final = table(IncarnationRow)
_INTERVALS: Final = table(UsageIntervalRow)


class PostgresSandboxRepository(SandboxRepository):
    """Sandbox rows of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def get(self, sandbox: SandboxId, *, for_update: bool = False) -> Sandbox:
        statement = select(_SANDBOXES).where(_SANDBOXES.c.id == sandbox)
        if for_update:
            # Of the kind that does not hold up rows that refer to this one: ledger, sessions.
            statement = statement.with_for_update(key_share=True)
        with translated():
            row = (await self._connection.execute(statement)).mappings().one_or_none()
        if row is None:
            raise SandboxNotFoundError(sandbox)
        return read_one(row, read_sandbox)

    @override
    async def add(self, sandbox: Sandbox) -> None:
        statement = insert(_SANDBOXES).values(sandbox_values(sandbox)).on_conflict_do_nothing()
        with translated():
            result = await self._connection.execute(statement)
        if result.rowcount == 0:
            raise AlreadyExistsError(f"Sandbox {sandbox.id} exists already.", sandbox=sandbox.id)

    @override
    async def create(self, sandbox: Sandbox, incarnation: Incarnation | None, record: RequestRecord) -> bool:
        with translated():
            claimed, made = await insert_new(self._connection, sandbox, incarnation, record)
        if claimed and not made:
            raise AlreadyExistsError(f"Sandbox {sandbox.id} exists already.", sandbox=sandbox.id)
        return claimed

    @override
    async def save(self, sandbox: Sandbox) -> None:
        c = _SANDBOXES.c
        values = sandbox_values(sandbox)
        values["last_use_time"] = func.greatest(c.last_use_time, sandbox.last_use_time)
        values["look_time"] = sandbox.update_time  # the sweep looks at once at what has changed
        statement = update(_SANDBOXES).values(values).where(c.id == sandbox.id, c.version == sandbox.version - 1)
        with translated():
            result = await self._connection.execute(statement)
        if result.rowcount == 0:
            raise ConflictError(f"Sandbox {sandbox.id} was changed by somebody else. Try again.", sandbox=sandbox.id)

    @override
    async def touch(self, sandbox: SandboxId, *, at: datetime) -> None:
        c = _SANDBOXES.c
        statement = update(_SANDBOXES).values(last_use_time=at).where(c.id == sandbox, c.last_use_time < at)
        with translated():
            await self._connection.execute(statement)

    @override
    async def list(
        self, where: SandboxFilter, *, order: SandboxOrder, page_size: int, page_token: str
    ) -> Page[Sandbox]:
        c = _SANDBOXES.c
        size = max(1, min(page_size, MAX_PAGE_SIZE))
        by, _, direction = order.value.partition(" ")
        column = c[by]
        this = f"sandboxes {order.value} {_words(where)}"
        statement = select(_SANDBOXES).where(c.client == where.client)
        if where.states:
            statement = statement.where(c.state.in_(sorted(state.value for state in where.states)))
        else:
            statement = statement.where(c.state != SandboxState.TERMINATED.value)
        if where.freelancer is not None:
            statement = statement.where(c.freelancer == where.freelancer)
        if where.labels:
            statement = statement.where(c.labels.contains(dict(where.labels)))
        if page_token:
            place = tuple_(*read_token(page_token, of=this))
            key = tuple_(column, c.id)
            statement = statement.where(key < place if direction else key > place)
        ends = (column.desc(), c.id.desc()) if direction else (column, c.id)
        with translated():
            rows = (await self._connection.execute(statement.order_by(*ends).limit(size + 1))).mappings().all()
        items = read_many(rows[:size], read_sandbox)
        token = make_token(rows[size - 1][by], rows[size - 1]["id"], of=this) if len(rows) > size else ""
        return Page(items=items, next_token=token)

    @override
    async def in_states(
        self, states: frozenset[SandboxState], *, limit: int, after: SandboxId | None = None
    ) -> Sequence[Sandbox]:
        c = _SANDBOXES.c
        statement = select(_SANDBOXES).where(c.state.in_(sorted(state.value for state in states)))
        if after is not None:
            statement = statement.where(c.id > after)
        with translated():
            rows = (await self._connection.execute(statement.order_by(c.id).limit(limit))).mappings().all()
        return read_many(rows, read_sandbox)

    @override
    async def find(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, Sandbox]:
        statement = select(_SANDBOXES).where(_SANDBOXES.c.id == func.any(sorted(sandboxes)))
        with translated():
            rows = (await self._connection.execute(statement)).mappings().all()
        return {sandbox.id: sandbox for sandbox in read_many(rows, read_sandbox)}


class PostgresIncarnationRepository(IncarnationRepository):
    """Incarnation rows of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def add(self, incarnation: Incarnation) -> None:
        statement = insert(_INCARNATIONS).values(incarnation_values(incarnation)).on_conflict_do_nothing()
        with translated():
            result = await self._connection.execute(statement)
        if result.rowcount == 0:
            raise ConflictError(
                f"Sandbox {incarnation.sandbox} has another incarnation that has not ended.",
                sandbox=incarnation.sandbox,
            )

    @override
    async def save(self, incarnation: Incarnation) -> None:
        c = _INCARNATIONS.c
        values = incarnation_values(incarnation)
        changes = {name: values[name] for name in ("host", "port", "server_name", "ready_time")}
        statement = update(_INCARNATIONS).where(c.id == incarnation.id)
        with translated():
            await self._connection.execute(statement.values(changes))
            if incarnation.end_time is not None:
                ended = statement.where(c.end_time.is_(None))
                await self._connection.execute(
                    ended.values(end_time=incarnation.end_time, end_reason=incarnation.end_reason)
                )

    @override
    async def get(self, incarnation: IncarnationId) -> Incarnation | None:
        return await self._one(_INCARNATIONS.c.id == incarnation)

    @override
    async def current(self, sandbox: SandboxId) -> Incarnation | None:
        return await self._one(and_(_INCARNATIONS.c.sandbox == sandbox, _INCARNATIONS.c.end_time.is_(None)))

    @override
    async def seen(self, incarnations: Sequence[IncarnationId], *, at: datetime) -> None:
        c = _INTERVALS.c
        statement = update(_INTERVALS).where(c.incarnation.in_(incarnations), c.closed_time.is_(None))
        with translated():
            await self._connection.execute(statement.values(last_seen_time=func.greatest(c.last_seen_time, at)))

    @override
    async def living(self, *, limit: int, after: IncarnationId | None = None) -> Sequence[Life]:
        c = _INCARNATIONS.c
        statement = select(_INCARNATIONS).where(c.end_time.is_(None)).order_by(c.id).limit(limit)
        if after is not None:
            statement = statement.where(c.id > after)
        with translated():
            rows = (await self._connection.execute(statement)).mappings().all()
            incarnations = [read_incarnation(row) for row in rows]
            names = [incarnation.sandbox for incarnation in incarnations]
            owners = select(_SANDBOXES).where(_SANDBOXES.c.id.in_(names))
            found = (await self._connection.execute(owners)).mappings().all()
        sandboxes = {sandbox.id: sandbox for sandbox in read_many(found, read_sandbox)}
        return [
            Life(sandbox=sandboxes[one.sandbox], incarnation=one)
            for one in incarnations
            if one.sandbox in sandboxes  # of others a newer version knows more
        ]

    async def _one(self, condition: ColumnElement[bool]) -> Incarnation | None:
        with translated():
            row = (await self._connection.execute(select(_INCARNATIONS).where(condition))).mappings().one_or_none()
        return read_incarnation(row) if row else None


def _words(where: SandboxFilter) -> str:
    states = sorted(state.value for state in where.states)
    return repr((where.client, where.freelancer, states, sorted(where.labels.items())))
