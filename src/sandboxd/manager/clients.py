"""Clients: made, changed, suspended and brought back by the platform. Their deletion is `erasure.py`'s."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

from sandboxd.manager.account_cache import AccountCache
from sandboxd.manager.account_ports import AccountFilter
from sandboxd.manager.once import PLATFORM, Once
from sandboxd.manager.ports import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, UnitOfWork, UnitsOfWork
from sandboxd.model.backup_retention import RetentionOverrides
from sandboxd.model.caller import Caller, Request, Role
from sandboxd.model.client import AccountState, Client, ClientPolicy, Quotas, TextPolicy
from sandboxd.model.client_errors import AccountStateError, ClientNotFoundError, StaleAccountEtagError
from sandboxd.model.ids import ClientId
from sandboxd.model.lifecycle import LifecycleOverrides
from sandboxd.model.paging import Page
from sandboxd.model.sources import Clock

KEEP: Final = object()
"""Stands for "leave this field as it is", where None is a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEdit:
    """What shall change in a policy; None leaves a field as it is."""

    text: TextPolicy | None = None
    text_lifetime: timedelta | object | None = KEEP
    """None: texts live until they are deleted."""
    models: tuple[str, ...] | None = None
    quotas: Quotas | None = None
    freelancer_quotas: Quotas | None = None
    lifecycle: LifecycleOverrides | None = None
    backup_every: timedelta | object | None = KEEP
    """None: as the installation."""
    backup_retention: RetentionOverrides | None = None

    def apply(self, policy: ClientPolicy) -> ClientPolicy:
        """Answer the policy with these fields."""
        lifetime, every = self.text_lifetime, self.backup_every
        return ClientPolicy(
            text=policy.text if self.text is None else self.text,
            text_lifetime=lifetime if lifetime is None or isinstance(lifetime, timedelta) else policy.text_lifetime,
            models=policy.models if self.models is None else self.models,
            quotas=policy.quotas if self.quotas is None else self.quotas,
            freelancer_quotas=policy.freelancer_quotas if self.freelancer_quotas is None else self.freelancer_quotas,
            lifecycle=policy.lifecycle if self.lifecycle is None else self.lifecycle,
            backup_every=every if every is None or isinstance(every, timedelta) else policy.backup_every,
            backup_retention=policy.backup_retention if self.backup_retention is None else self.backup_retention,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientEdit:
    """What shall change; None leaves a field as it is."""

    display_name: str | None = None
    policy: PolicyEdit = field(default_factory=PolicyEdit)


class Clients:
    """Manages clients. Who may call what was decided at the edge; here a caller reaches only what is its own."""

    def __init__(self, *, units: UnitsOfWork, once: Once, accounts: AccountCache, clock: Clock) -> None:
        self._units = units
        self._once = once
        self._accounts = accounts
        self._clock = clock

    async def create(
        self,
        request: Request,
        client: ClientId,
        *,
        display_name: str,
        policy: ClientPolicy,
        encode: Callable[[Client], bytes],
    ) -> bytes:
        """Make a client and answer it, encoded.

        Raises:
            AccountExistsError: The id is taken.
        """
        now = self._clock.now()
        made = Client(id=client, display_name=display_name, policy=policy, create_time=now, update_time=now)

        async def change(work: UnitOfWork) -> Client:
            await work.clients.add(made)
            return made

        return await self._run(request, "CreateClient", client, change, encode)

    async def get(self, caller: Caller, client: ClientId) -> Client:
        """One client.

        Raises:
            ClientNotFoundError: There is none, or it is not the caller's.
        """
        require_reachable(caller, client)
        async with self._units.begin() as work:
            return await work.clients.get(client)

    async def list(self, *, states: frozenset[AccountState], page_size: int, page_token: str) -> Page[Client]:
        """One page of all clients, oldest first; `page_size` 0 takes the default.

        Raises:
            InvalidRequestError: The token is not one of a list with these states.
        """
        async with self._units.begin() as work:
            return await work.clients.list(
                AccountFilter(states=states), page_size=page_of(page_size), page_token=page_token
            )

    async def update(
        self, request: Request, client: ClientId, edit: ClientEdit, *, etag: str, encode: Callable[[Client], bytes]
    ) -> bytes:
        """Change a client and answer it, encoded.

        Raises:
            ClientNotFoundError: There is none.
            StaleAccountEtagError: `etag` is given and not the present one.
            AccountStateError: It is deleted, or about to be.
        """

        async def change(work: UnitOfWork) -> Client:
            found = await work.clients.get(client, for_update=True)
            require_etag(f"clients/{client}", etag, found.version)
            if found.state in (AccountState.DELETING, AccountState.DELETED):
                raise AccountStateError(f"clients/{client}", state=found.state.value, wanted="changed")
            edited = replace(
                found,
                display_name=found.display_name if edit.display_name is None else edit.display_name,
                policy=edit.policy.apply(found.policy),
                update_time=self._clock.now(),
                version=found.version + 1,
            )
            await work.clients.save(edited)
            if edited.policy.lifecycle != found.policy.lifecycle:
                await work.looks.hasten(client, at=edited.update_time)
            return edited

        return await self._run(request, "UpdateClient", client, change, encode)

    async def suspend(
        self, request: Request, client: ClientId, *, reason: str, etag: str, encode: Callable[[Client], bytes]
    ) -> bytes:
        """Refuse everything of a client until it is reinstated. The gateway and every replica learn of it at once.

        Raises:
            ClientNotFoundError: There is none.
            StaleAccountEtagError: `etag` is given and not the present one.
            AccountStateError: It is not active.
        """
        return await self._enter(request, "SuspendClient", client, AccountState.SUSPENDED, etag, encode, reason=reason)

    async def reinstate(
        self, request: Request, client: ClientId, *, etag: str, encode: Callable[[Client], bytes]
    ) -> bytes:
        """Let a suspended client act again.

        Raises:
            ClientNotFoundError: There is none.
            StaleAccountEtagError: `etag` is given and not the present one.
            AccountStateError: It is not suspended.
        """
        return await self._enter(request, "ReinstateClient", client, AccountState.ACTIVE, etag, encode)

    async def _enter(
        self,
        request: Request,
        method: str,
        client: ClientId,
        state: AccountState,
        etag: str,
        encode: Callable[[Client], bytes],
        *,
        reason: str = "",
    ) -> bytes:
        async def change(work: UnitOfWork) -> Client:
            found = await work.clients.get(client, for_update=True)
            require_etag(f"clients/{client}", etag, found.version)
            entered = found.enter(state, at=self._clock.now(), reason=reason)
            await work.clients.save(entered)
            return entered

        return await self._run(request, method, client, change, encode)

    async def _run(
        self,
        request: Request,
        method: str,
        client: ClientId,
        change: Callable[[UnitOfWork], Awaitable[Client]],
        encode: Callable[[Client], bytes],
    ) -> bytes:
        response = await self._once.run(
            request, method, change, encode=encode, about=f"clients/{client}", namespace=namespace_of(request.caller)
        )
        await self._accounts.announce(client)
        return response


def namespace_of(caller: Caller) -> ClientId:
    """Whose request ids a call takes: a platform caller's are the platform's, whatever client its token names."""
    return PLATFORM if caller.role is Role.PLATFORM else caller.client


def require_reachable(caller: Caller, client: ClientId) -> None:
    """Let pass who may know of this client: the platform, and those of the client itself.

    Raises:
        ClientNotFoundError: It is another client's caller.
    """
    if caller.role is not Role.PLATFORM and caller.client != client:
        raise ClientNotFoundError(client)


def require_etag(name: str, etag: str, version: int) -> None:
    """Let pass who has seen the present version, or does not care.

    Raises:
        StaleAccountEtagError: It has seen another one.
    """
    if etag and etag != str(version):
        raise StaleAccountEtagError(name)


def page_of(page_size: int) -> int:
    """How many entries a page has for whoever asks for so many."""
    return min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
