"""Clients and freelancers in memory, as part of a `FakeUnits`."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from typing_extensions import override

from sandboxd.manager.account_ports import AccountFilter, ClientRepository, FreelancerRepository, QuotaRepository
from sandboxd.model.client import AccountState, Client, Freelancer, Standing
from sandboxd.model.client_errors import AccountExistsError, ClientNotFoundError, FreelancerNotFoundError
from sandboxd.model.errors import ConflictError, FieldViolation, InvalidRequestError
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SandboxId, SessionId
from sandboxd.model.paging import Page
from sandboxd.model.quota import SandboxesInUse
from sandboxd.model.sandbox import TIER_RESOURCES, Sandbox, SandboxState

Item = TypeVar("Item", Client, Freelancer)
FOREVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class FakePlace:
    """A session that is busy: by an open turn, or by a place that it holds."""

    client: ClientId
    freelancer: FreelancerId
    session: SessionId
    until: datetime = FOREVER
    replica: str = ""


class _Rows(Protocol):
    clients: dict[ClientId, Client]
    sandboxes: dict[SandboxId, Sandbox]
    open_turns: list[FakePlace]
    places: dict[tuple[ClientId, RequestId], FakePlace]
    freelancers: dict[tuple[ClientId, FreelancerId], Freelancer]


class _Work(Protocol):
    async def read(self) -> _Rows: ...
    async def write(self) -> _Rows: ...
    def now(self) -> datetime: ...
    def lives(self, replica: str) -> bool: ...


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
    async def standing(self, client: ClientId, freelancer: FreelancerId) -> Standing:
        rows = await self.work.write()
        found = rows.clients.get(client)
        return Standing(client=found, freelancer=rows.freelancers.get((client, freelancer)))

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


class FakeQuotaRepository(QuotaRepository):
    """Counts. Turns that are open are those that a test has put there."""

    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def sandboxes(self, client: ClientId, *, freelancer: FreelancerId | None = None) -> SandboxesInUse:
        rows = await self.work.read()
        found = [
            one
            for one in rows.sandboxes.values()
            if one.client == client
            and freelancer in (None, one.freelancer)
            and one.state is not SandboxState.TERMINATED
        ]
        storage = sum(TIER_RESOURCES[one.tier].storage_bytes for one in found)
        return SandboxesInUse(count=len(found), storage_bytes=storage)

    @override
    async def turns(self, client: ClientId, *, freelancer: FreelancerId | None = None, but: SessionId) -> int:
        rows = await self.work.read()
        busy = {one.session for one in rows.open_turns if one.client == client and freelancer in (None, one.freelancer)}
        places = {
            one.session
            for (owner, _), one in rows.places.items()
            if owner == client
            and freelancer in (None, one.freelancer)
            and one.until > self.work.now()
            and self.work.lives(one.replica)
        }
        return len((busy | places) - {but})

    @override
    async def take_place(
        self,
        client: ClientId,
        request_id: RequestId,
        freelancer: FreelancerId,
        session: SessionId,
        *,
        lease: timedelta,
        replica: str,
    ) -> None:
        rows = await self.work.write()
        until = self.work.now() + lease
        rows.places[client, request_id] = FakePlace(
            client=client, freelancer=freelancer, session=session, until=until, replica=replica
        )

    @override
    async def give_back(self, client: ClientId, request_id: RequestId) -> None:
        rows = await self.work.write()
        rows.places.pop((client, request_id), None)


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
