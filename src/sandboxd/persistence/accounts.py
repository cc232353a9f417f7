"""The rows of clients and their freelancers. Used within one transaction."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeVar

from sqlalchemy import Select, Table, Text, and_, bindparam, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.account_ports import AccountFilter, ClientRepository, FreelancerRepository
from sandboxd.manager.ports import MAX_PAGE_SIZE
from sandboxd.model.client import AccountState, Client, Freelancer, Standing
from sandboxd.model.client_errors import AccountExistsError, ClientNotFoundError, FreelancerNotFoundError
from sandboxd.model.errors import ConflictError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.paging import Page
from sandboxd.persistence.account_rows import client_values, freelancer_values, read_client, read_freelancer
from sandboxd.persistence.errors import translated
from sandboxd.persistence.paging import make_token, read_token
from sandboxd.persistence.sandbox_rows import Row
from sandboxd.persistence.tables import ClientRow, FreelancerRow
from sandboxd.persistence.tables.base import table

_CLIENTS: Final = table(ClientRow)
_FREELANCERS: Final = table(FreelancerRow)
# Made once: it stands in the way of every Create.
_STANDING: Final = (
    select(*_CLIENTS.c, *_FREELANCERS.c)
    .select_from(
        _CLIENTS.outerjoin(
            _FREELANCERS,
            and_(_FREELANCERS.c.client == _CLIENTS.c.id, _FREELANCERS.c.id == bindparam("who", type_=Text())),
        )
    )
    .where(_CLIENTS.c.id == bindparam("of", type_=Text()))
    .with_for_update(key_share=True, of=_CLIENTS)
)

Item = TypeVar("Item", Client, Freelancer)


class PostgresClientRepository(ClientRepository):
    """Client rows of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def find(self, client: ClientId, *, for_update: bool = False) -> Client | None:
        statement = select(_CLIENTS).where(_CLIENTS.c.id == client)
        row = await _one(self._connection, statement, for_update=for_update)
        return None if row is None else read_client(row)

    @override
    async def get(self, client: ClientId, *, for_update: bool = False) -> Client:
        found = await self.find(client, for_update=for_update)
        if found is None:
            raise ClientNotFoundError(client)
        return found

    @override
    async def standing(self, client: ClientId, freelancer: FreelancerId) -> Standing:
        with translated():
            found = await self._connection.execute(_STANDING, {"of": client, "who": freelancer})
        row = found.one_or_none()
        if row is None:
            return Standing()
        mine = dict(zip(_CLIENTS.c.keys(), row, strict=False))
        person = dict(zip(_FREELANCERS.c.keys(), row[len(mine) :], strict=True))
        return Standing(client=read_client(mine), freelancer=None if person["id"] is None else read_freelancer(person))

    @override
    async def add(self, client: Client) -> None:
        statement = insert(_CLIENTS).values(client_values(client)).on_conflict_do_nothing()
        with translated():
            result = await self._connection.execute(statement)
        if result.rowcount == 0:
            found = await self.get(client.id)
            raise AccountExistsError(f"clients/{client.id}", state=found.state.value)

    @override
    async def save(self, client: Client) -> None:
        c = _CLIENTS.c
        statement = update(_CLIENTS).values(client_values(client)).where(c.id == client.id)
        with translated():
            result = await self._connection.execute(statement.where(c.version == client.version - 1))
        if result.rowcount == 0:
            raise ConflictError(f"Client {client.id} was changed by somebody else. Try again.", client=client.id)

    @override
    async def list(self, where: AccountFilter, *, page_size: int, page_token: str) -> Page[Client]:
        return await _page(
            self._connection,
            select(_CLIENTS),
            _CLIENTS,
            where,
            read=read_client,
            page_size=page_size,
            page_token=page_token,
            of="clients",
        )


class PostgresFreelancerRepository(FreelancerRepository):
    """Freelancer rows of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def ensure(self, client: ClientId, freelancer: FreelancerId, *, at: datetime) -> None:
        with translated():
            await self._connection.execute(
                insert(_CLIENTS).values(id=client, create_time=at, update_time=at).on_conflict_do_nothing()
            )
            await self._connection.execute(
                insert(_FREELANCERS)
                .values(client=client, id=freelancer, create_time=at, update_time=at)
                .on_conflict_do_nothing()
            )

    @override
    async def find(self, client: ClientId, freelancer: FreelancerId, *, for_update: bool = False) -> Freelancer | None:
        c = _FREELANCERS.c
        statement = select(_FREELANCERS).where(c.client == client, c.id == freelancer)
        row = await _one(self._connection, statement, for_update=for_update)
        return None if row is None else read_freelancer(row)

    @override
    async def get(self, client: ClientId, freelancer: FreelancerId, *, for_update: bool = False) -> Freelancer:
        found = await self.find(client, freelancer, for_update=for_update)
        if found is None:
            raise FreelancerNotFoundError(client, freelancer)
        return found

    @override
    async def add(self, freelancer: Freelancer) -> None:
        statement = insert(_FREELANCERS).values(freelancer_values(freelancer)).on_conflict_do_nothing()
        with translated():
            result = await self._connection.execute(statement)
        if result.rowcount == 0:
            found = await self.get(freelancer.client, freelancer.id)
            raise AccountExistsError(
                f"clients/{freelancer.client}/freelancers/{freelancer.id}", state=found.state.value
            )

    @override
    async def save(self, freelancer: Freelancer) -> None:
        c = _FREELANCERS.c
        statement = update(_FREELANCERS).values(freelancer_values(freelancer))
        statement = statement.where(c.client == freelancer.client, c.id == freelancer.id)
        with translated():
            result = await self._connection.execute(statement.where(c.version == freelancer.version - 1))
        if result.rowcount == 0:
            raise ConflictError(
                f"Freelancer {freelancer.id} was changed by somebody else. Try again.", freelancer=freelancer.id
            )

    @override
    async def list(
        self, client: ClientId, where: AccountFilter, *, page_size: int, page_token: str
    ) -> Page[Freelancer]:
        return await _page(
            self._connection,
            select(_FREELANCERS).where(_FREELANCERS.c.client == client),
            _FREELANCERS,
            where,
            read=read_freelancer,
            page_size=page_size,
            page_token=page_token,
            of=f"freelancers of {client}",
        )


async def _one(connection: AsyncConnection, statement: Select[Any], *, for_update: bool) -> Row | None:
    if for_update:
        # Of the kind that does not hold up rows that refer to this one.
        statement = statement.with_for_update(key_share=True)
    with translated():
        row: Row | None = (await connection.execute(statement)).mappings().one_or_none()
    return row


async def _page(
    connection: AsyncConnection,
    statement: Select[Any],  # Any: SQLAlchemy's rows
    rows: Table,
    where: AccountFilter,
    *,
    read: Callable[[Row], Item],
    page_size: int,
    page_token: str,
    of: str,
) -> Page[Item]:
    c = rows.c
    size = max(1, min(page_size, MAX_PAGE_SIZE))
    states = sorted(state.value for state in where.states)
    this = f"{of} {states}"
    if states:
        statement = statement.where(c.state.in_(states))
    else:
        statement = statement.where(c.state != AccountState.DELETED.value)
    if page_token:
        statement = statement.where(tuple_(c.create_time, c.id) > tuple_(*read_token(page_token, of=this)))
    with translated():
        found = (await connection.execute(statement.order_by(c.create_time, c.id).limit(size + 1))).mappings().all()
    items = [read(row) for row in found[:size]]
    token = make_token(items[-1].create_time, items[-1].id, of=this) if len(found) > size else ""
    return Page(items=items, next_token=token)
