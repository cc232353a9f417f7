"""Clients and freelancers in memory, as part of a `FakeUnits`."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Protocol, TypeVar

from typing_extensions import override

from sandboxd.manager.account_ports import AccountFilter, ClientRepository, FreelancerRepository
from sandboxd.model.client import AccountState, Client, Freelancer
from sandboxd.model.client_errors import AccountExistsError, ClientNotFoundError, FreelancerNotFoundError
from sandboxd.model.errors import ConflictError, FieldViolation, InvalidRequestError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.paging import Page

Item = TypeVar("Item", Client, Freelancer)


class _Rows(Protocol):
    clients: dict[ClientId, Client]
    freelancers: dict[tuple[ClientId, FreelancerId], Freelancer]


class _Work(Protocol):
    async def read(self) -> _Rows: ...
    async def write(self) -> _Rows: ...


class FakeClientRepository(ClientRepository):
    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def find(self, client: ClientId, *, for_update: bool = False) -> Client | None:
        rows = await (self.work.write() if for_update else self.work.read())
        return rows.clients.get(client)

    @override
    async def get(self, client: ClientId, *, for_update: bool = False) -> Client:
        found = await self.find(client, for_update=for_update)
        if found is None:
            raise ClientNotFoundError(client)
        return found

    @override
    async def add(self, client: Client) -> None:
        rows = await self.work.write()
        if client.id in rows.clients:
            raise AccountExistsError(f"clients/{client.id}", state=rows.clients[client.id].state.value)
        rows.clients[client.id] = client

    @override
    async def save(self, client: Client) -> None:
        rows = await self.work.write()
        before = rows.clients.get(client.id)
        if before is None or before.version != client.version - 1:
            raise ConflictError(f"Client {client.id} was changed by somebody else.")
        rows.clients[client.id] = client

    @override
    async def list(self, where: AccountFilter, *, page_size: int, page_token: str) -> Page[Client]:
        rows = await self.work.read()
        return _page(rows.clients.values(), where, page_size=page_size, page_token=page_token)


class FakeFreelancerRepository(FreelancerRepository):
    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def ensure(self, client: ClientId, freelancer: FreelancerId, *, at: datetime) -> None:
        rows = await self.work.write()
        rows.clients.setdefault(client, Client(id=client, create_time=at, update_time=at))
        rows.freelancers.setdefault(
            (client, freelancer), Freelancer(client=client, id=freelancer, create_time=at, update_time=at)
        )

    @override
    async def find(self, client: ClientId, freelancer: FreelancerId, *, for_update: bool = False) -> Freelancer | None:
        rows = await (self.work.write() if for_update else self.work.read())
        return rows.freelancers.get((client, freelancer))

    @override
    async def get(self, client: ClientId, freelancer: FreelancerId, *, for_update: bool = False) -> Freelancer:
        found = await self.find(client, freelancer, for_update=for_update)
        if found is None:
            raise FreelancerNotFoundError(client, freelancer)
        return found

    @override
    async def add(self, freelancer: Freelancer) -> None:
        rows = await self.work.write()
        key = (freelancer.client, freelancer.id)
        assert freelancer.client in rows.clients, "no such client"
        if key in rows.freelancers:
            name = f"clients/{freelancer.client}/freelancers/{freelancer.id}"
            raise AccountExistsError(name, state=rows.freelancers[key].state.value)
        rows.freelancers[key] = freelancer

    @override
    async def save(self, freelancer: Freelancer) -> None:
        rows = await self.work.write()
        before = rows.freelancers.get((freelancer.client, freelancer.id))
        if before is None or before.version != freelancer.version - 1:
            raise ConflictError(f"Freelancer {freelancer.id} was changed by somebody else.")
        rows.freelancers[freelancer.client, freelancer.id] = freelancer

    @override
    async def list(
        self, client: ClientId, where: AccountFilter, *, page_size: int, page_token: str
    ) -> Page[Freelancer]:
        rows = await self.work.read()
        own = [row for row in rows.freelancers.values() if row.client == client]
        return _page(own, where, page_size=page_size, page_token=page_token, of=client)


def _page(rows: Iterable[Item], where: AccountFilter, *, page_size: int, page_token: str, of: str = "") -> Page[Item]:
    mark = repr((of, sorted(state.value for state in where.states)))
    wanted = where.states or frozenset(AccountState) - {AccountState.DELETED}
    found = sorted((row for row in rows if row.state in wanted), key=lambda row: (row.create_time, row.id))
    if page_token:
        try:
            last, made_for = json.loads(base64.urlsafe_b64decode(page_token))
        except (ValueError, binascii.Error):
            last, made_for = "", None
        if made_for != mark:
            violation = FieldViolation(field="page_token", description="must be the token of a page of the same list")
            raise InvalidRequestError("The page token is not one of this list.", violations=[violation])
        place = next(index for index, row in enumerate(found) if row.id == last)
        found = found[place + 1 :]
    page = found[:page_size]
    more = len(found) > page_size
    token = base64.urlsafe_b64encode(json.dumps([page[-1].id, mark]).encode()).decode() if more else ""
    return Page(items=page, next_token=token)
