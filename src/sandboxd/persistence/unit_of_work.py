"""The manager's unit of work: one PostgreSQL transaction, with remembered requests and leases of operations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import delete, func, literal, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.ports import (
    Operation,
    OperationId,
    OperationRepository,
    RequestOutcome,
    RequestRecord,
    RequestRepository,
    UnitOfWork,
    UnitsOfWork,
)
from sandboxd.model.ids import ClientId, RequestId, SandboxId
from sandboxd.persistence.accounts import PostgresClientRepository, PostgresFreelancerRepository
from sandboxd.persistence.backups import PostgresBackupSetRepository
from sandboxd.persistence.births import claiming
from sandboxd.persistence.budgets import PostgresBudgetRepository
from sandboxd.persistence.drills import PostgresDrillRepository
from sandboxd.persistence.engine import Database
from sandboxd.persistence.erasures import PostgresErasureRepository
from sandboxd.persistence.errors import translated
from sandboxd.persistence.generations import PostgresGenerationRepository
from sandboxd.persistence.keys import PostgresKeyRepository
from sandboxd.persistence.liveness import is_living
from sandboxd.persistence.looks import PostgresLookRepository
from sandboxd.persistence.packages import PostgresPackageRepository
from sandboxd.persistence.pools import PostgresPoolRepository
from sandboxd.persistence.prices import PostgresPriceRepository
from sandboxd.persistence.quotas import PostgresQuotaRepository
from sandboxd.persistence.sandbox_rows import outcome_json, read_request, request_values
from sandboxd.persistence.sandboxes import PostgresIncarnationRepository, PostgresSandboxRepository
from sandboxd.persistence.sboms import PostgresSbomRepository
from sandboxd.persistence.tables import OperationRow, RequestRow
from sandboxd.persistence.tables.base import table

_REQUESTS: Final = table(RequestRow)
_OPERATIONS: Final = table(OperationRow)


class PostgresRequestRepository(RequestRepository):
    """Remembered requests of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def claim(self, record: RequestRecord) -> RequestRecord | None:
        with translated():
            result = await self._connection.execute(claiming(request_values(record)))
        return None if result.rowcount else await self.get(record.client, record.request_id)

    @override
    async def get(self, client: ClientId, request_id: RequestId) -> RequestRecord | None:
        c = _REQUESTS.c
        statement = select(_REQUESTS).where(c.client == client, c.request_id == request_id)
        with translated():
            row = (await self._connection.execute(statement)).mappings().one_or_none()
        return read_request(row) if row else None

    @override
    async def finish(self, client: ClientId, request_id: RequestId, outcome: RequestOutcome) -> None:
        c = _REQUESTS.c
        statement = (
            update(_REQUESTS)
            .values(outcome=outcome_json(outcome))
            .where(c.client == client, c.request_id == request_id, c.outcome.is_(None))
        )
        with translated():
            await self._connection.execute(statement)

    @override
    async def in_progress(self, sandbox: SandboxId) -> Sequence[RequestRecord]:
        c = _REQUESTS.c
        statement = select(_REQUESTS).where(c.sandbox == sandbox, c.outcome.is_(None))
        with translated():
            rows = (await self._connection.execute(statement.order_by(c.create_time, c.request_id))).mappings().all()
        return [read_request(row) for row in rows]

    @override
    async def forget_expired(self, *, at: datetime, limit: int) -> int:
        c = _REQUESTS.c
        chosen = select(c.client, c.request_id).where(c.expire_time <= at).limit(limit)
        keys = chosen.with_for_update(skip_locked=True).subquery()
        statement = delete(_REQUESTS).where(c.client == keys.c.client, c.request_id == keys.c.request_id)
        with translated():
            return (await self._connection.execute(statement)).rowcount


class PostgresOperationRepository(OperationRepository):
    """Who works on which sandbox; leases by the database's clock."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def take(self, sandbox: SandboxId, operation: Operation, *, lease: timedelta) -> bool:
        until = func.clock_timestamp() + literal(lease)
        values: dict[str, Any] = {"id": operation.id, "replica": operation.replica, "lease_until": until}  # Any: SQL
        c = _OPERATIONS.c
        gone = or_(
            c.id == operation.id,
            c.lease_until <= func.clock_timestamp(),
            text(f"NOT {is_living('operations.replica')}"),
        )
        statement = (
            insert(_OPERATIONS)
            .values(sandbox=sandbox, **values)
            .on_conflict_do_update(index_elements=["sandbox"], set_=values, where=gone)
        )
        with translated():
            return (await self._connection.execute(statement)).rowcount == 1

    @override
    async def renew(self, operations: Sequence[OperationId], *, lease: timedelta) -> Sequence[OperationId]:
        c = _OPERATIONS.c
        until = func.clock_timestamp() + literal(lease)
        statement = update(_OPERATIONS).values(lease_until=until).where(c.id.in_(operations)).returning(c.id)
        with translated():
            held = set((await self._connection.execute(statement)).scalars())
        return [operation for operation in operations if operation in held]

    @override
    async def holds(self, sandbox: SandboxId, operation: OperationId) -> bool:
        c = _OPERATIONS.c
        statement = select(literal(1)).where(c.sandbox == sandbox, c.id == operation)
        with translated():
            return (await self._connection.execute(statement)).one_or_none() is not None

    @override
    async def release(self, sandbox: SandboxId, operation: OperationId) -> None:
        c = _OPERATIONS.c
        with translated():
            await self._connection.execute(delete(_OPERATIONS).where(c.sandbox == sandbox, c.id == operation))


class PostgresUnitOfWork(UnitOfWork):
    """One transaction. It takes a connection from the pool when it is entered, and gives it back at its end."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: AsyncConnection | None = None

    @property
    @override
    def sandboxes(self) -> PostgresSandboxRepository:
        return PostgresSandboxRepository(self._open())

    @property
    @override
    def incarnations(self) -> PostgresIncarnationRepository:
        return PostgresIncarnationRepository(self._open())

    @property
    @override
    def requests(self) -> PostgresRequestRepository:
        return PostgresRequestRepository(self._open())

    @property
    @override
    def operations(self) -> PostgresOperationRepository:
        return PostgresOperationRepository(self._open())

    @property
    @override
    def clients(self) -> PostgresClientRepository:
        return PostgresClientRepository(self._open())

    @property
    @override
    def freelancers(self) -> PostgresFreelancerRepository:
        return PostgresFreelancerRepository(self._open())

    @property
    @override
    def budgets(self) -> PostgresBudgetRepository:
        return PostgresBudgetRepository(self._open())

    @property
    @override
    def prices(self) -> PostgresPriceRepository:
        return PostgresPriceRepository(self._open())

    @property
    @override
    def erasures(self) -> PostgresErasureRepository:
        return PostgresErasureRepository(self._open())

    @property
    @override
    def keys(self) -> PostgresKeyRepository:
        return PostgresKeyRepository(self._open())

    @property
    @override
    def looks(self) -> PostgresLookRepository:
        return PostgresLookRepository(self._open())

    @property
    @override
    def pools(self) -> PostgresPoolRepository:
        return PostgresPoolRepository(self._open())

    @property
    @override
    def generations(self) -> PostgresGenerationRepository:
        return PostgresGenerationRepository(self._open())

    @property
    @override
    def packages(self) -> PostgresPackageRepository:
        return PostgresPackageRepository(self._open())

    @property
    @override
    def sboms(self) -> PostgresSbomRepository:
        return PostgresSbomRepository(self._open())

    @property
    @override
    def backup_sets(self) -> PostgresBackupSetRepository:
        return PostgresBackupSetRepository(self._open())

    @property
    @override
    def drills(self) -> PostgresDrillRepository:
        return PostgresDrillRepository(self._open())

    @property
    @override
    def quotas(self) -> PostgresQuotaRepository:
        return PostgresQuotaRepository(self._open())

    @override
    async def __aenter__(self) -> Self:
        with translated():
            self._connection = await self._database.engine.connect()  # the first statement begins the transaction
        return self

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with translated():
                await connection.close()  # what was not committed is undone

    @override
    async def commit(self) -> None:
        with translated():
            await self._open().commit()

    def _open(self) -> AsyncConnection:
        if self._connection is None:
            raise RuntimeError("a unit of work is used inside its `async with`")
        return self._connection


class PostgresUnitsOfWork(UnitsOfWork):
    """Units of work on one pool."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    def begin(self) -> PostgresUnitOfWork:
        return PostgresUnitOfWork(self._database)
