"""Freelancers: made, changed, suspended and brought back by their client's administrator, or by the platform."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from sandboxd.manager.account_cache import AccountCache
from sandboxd.manager.account_ports import AccountFilter
from sandboxd.manager.clients import KEEP, namespace_of, page_of, require_etag, require_reachable
from sandboxd.manager.once import Once
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.model.caller import Caller, Request
from sandboxd.model.client import AccountState, Freelancer, Quotas
from sandboxd.model.client_errors import AccountStateError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.paging import Page
from sandboxd.model.sources import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class FreelancerEdit:
    """What shall change; None leaves a field as it is."""

    display_name: str | None = None
    quotas: Quotas | object | None = KEEP
    """None: the freelancer takes those that the client's policy gives to each."""


class Freelancers:
    """Manages freelancers. Who may call what was decided at the edge; here a caller reaches only its own client's."""

    def __init__(self, *, units: UnitsOfWork, once: Once, accounts: AccountCache, clock: Clock) -> None:
        self._units = units
        self._once = once
        self._accounts = accounts
        self._clock = clock

    async def create(
        self,
        request: Request,
        client: ClientId,
        freelancer: FreelancerId,
        *,
        display_name: str,
        quotas: Quotas | None,
        encode: Callable[[Freelancer], bytes],
    ) -> bytes:
        """Make a freelancer and answer it, encoded.

        Raises:
            ClientNotFoundError: The client is not there, or not the caller's.
            AccountExistsError: The id is taken.
            AccountStateError: The client is deleted, or about to be.
        """
        now = self._clock.now()
        made = Freelancer(
            client=client, id=freelancer, display_name=display_name, quotas=quotas, create_time=now, update_time=now
        )

        async def change(work: UnitOfWork) -> Freelancer:
            owner = await work.clients.get(client, for_update=True)
            if owner.state in (AccountState.DELETING, AccountState.DELETED):
                raise AccountStateError(f"clients/{client}", state=owner.state.value, wanted="given a freelancer")
            await work.freelancers.add(made)
            return made

        return await self._run(request, "CreateFreelancer", client, freelancer, change, encode)

    async def get(self, caller: Caller, client: ClientId, freelancer: FreelancerId) -> Freelancer:
        """One freelancer.

        Raises:
            ClientNotFoundError: The client is not the caller's.
            FreelancerNotFoundError: The client has none of this name.
        """
        require_reachable(caller, client)
        async with self._units.begin() as work:
            return await work.freelancers.get(client, freelancer)

    async def list(
        self, caller: Caller, client: ClientId, *, states: frozenset[AccountState], page_size: int, page_token: str
    ) -> Page[Freelancer]:
        """One page of a client's freelancers, oldest first; `page_size` 0 takes the default.

        Raises:
            ClientNotFoundError: The client is not there, or not the caller's.
            InvalidRequestError: The token is not one of a list with these states.
        """
        require_reachable(caller, client)
        async with self._units.begin() as work:
            await work.clients.get(client)
            return await work.freelancers.list(
                client, AccountFilter(states=states), page_size=page_of(page_size), page_token=page_token
            )

    async def update(
        self,
        request: Request,
        client: ClientId,
        freelancer: FreelancerId,
        edit: FreelancerEdit,
        *,
        etag: str,
        encode: Callable[[Freelancer], bytes],
    ) -> bytes:
        """Change a freelancer and answer it, encoded.

        Raises:
            ClientNotFoundError, FreelancerNotFoundError: None such, or not the caller's.
            StaleAccountEtagError: `etag` is given and not the present one.
            AccountStateError: It is deleted, or about to be.
        """
        name = f"clients/{client}/freelancers/{freelancer}"

        async def change(work: UnitOfWork) -> Freelancer:
            found = await work.freelancers.get(client, freelancer, for_update=True)
            require_etag(name, etag, found.version)
            if found.state in (AccountState.DELETING, AccountState.DELETED):
                raise AccountStateError(name, state=found.state.value, wanted="changed")
            quotas = edit.quotas
            edited = replace(
                found,
                display_name=found.display_name if edit.display_name is None else edit.display_name,
                quotas=quotas if quotas is None or isinstance(quotas, Quotas) else found.quotas,
                update_time=self._clock.now(),
                version=found.version + 1,
            )
            await work.freelancers.save(edited)
            return edited

        return await self._run(request, "UpdateFreelancer", client, freelancer, change, encode)

    async def suspend(
        self,
        request: Request,
        client: ClientId,
        freelancer: FreelancerId,
        *,
        reason: str,
        etag: str,
        encode: Callable[[Freelancer], bytes],
    ) -> bytes:
        """Refuse everything of a freelancer until it is reinstated.

        Raises:
            ClientNotFoundError, FreelancerNotFoundError: None such, or not the caller's.
            StaleAccountEtagError: `etag` is given and not the present one.
            AccountStateError: It is not active.
        """

        async def change(work: UnitOfWork) -> Freelancer:
            return await self._enter(work, client, freelancer, AccountState.SUSPENDED, etag=etag, reason=reason)

        return await self._run(request, "SuspendFreelancer", client, freelancer, change, encode)

    async def reinstate(
        self,
        request: Request,
        client: ClientId,
        freelancer: FreelancerId,
        *,
        etag: str,
        encode: Callable[[Freelancer], bytes],
    ) -> bytes:
        """Let a suspended freelancer act again.

        Raises:
            ClientNotFoundError, FreelancerNotFoundError: None such, or not the caller's.
            StaleAccountEtagError: `etag` is given and not the present one.
            AccountStateError: It is not suspended.
        """

        async def change(work: UnitOfWork) -> Freelancer:
            return await self._enter(work, client, freelancer, AccountState.ACTIVE, etag=etag)

        return await self._run(request, "ReinstateFreelancer", client, freelancer, change, encode)

    async def _enter(
        self,
        work: UnitOfWork,
        client: ClientId,
        freelancer: FreelancerId,
        state: AccountState,
        *,
        etag: str,
        reason: str = "",
    ) -> Freelancer:
        found = await work.freelancers.get(client, freelancer, for_update=True)
        require_etag(f"clients/{client}/freelancers/{freelancer}", etag, found.version)
        entered = found.enter(state, at=self._clock.now(), reason=reason)
        await work.freelancers.save(entered)
        return entered

    async def _run(
        self,
        request: Request,
        method: str,
        client: ClientId,
        freelancer: FreelancerId,
        change: Callable[[UnitOfWork], Awaitable[Freelancer]],
        encode: Callable[[Freelancer], bytes],
    ) -> bytes:
        require_reachable(request.caller, client)
        response = await self._once.run(
            request,
            method,
            change,
            encode=encode,
            about=f"clients/{client}/freelancers/{freelancer}",
            namespace=namespace_of(request.caller),
        )
        await self._accounts.announce(client)
        return response
