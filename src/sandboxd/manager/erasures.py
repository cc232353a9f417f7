"""Deletions as callers ask for them: the intent becomes durable, the eraser does the work, the proof is the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from sandboxd.manager.account_cache import AccountCache
from sandboxd.manager.changes import Changes
from sandboxd.manager.clients import namespace_of, page_of, require_etag, require_reachable
from sandboxd.manager.erasing import Eraser
from sandboxd.manager.intents import POLL_SECONDS
from sandboxd.manager.ports import REQUEST_KEPT_FOR, RequestRecord, UnitOfWork, UnitsOfWork
from sandboxd.model.caller import Caller, Request
from sandboxd.model.client import AccountState, Client, Freelancer
from sandboxd.model.client_errors import ClientNotFoundError, ErasureNotFoundError
from sandboxd.model.erasure import Erasure, ErasureId
from sandboxd.model.errors import DeadlineError, RequestIdReusedError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.model.sources import Clock, IdSource


class Erasures:
    """Deletes clients and freelancers, and shows the proofs."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        accounts: AccountCache,
        eraser: Eraser,
        changes: Changes,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._units = units
        self._accounts = accounts
        self._eraser = eraser
        self._changes = changes
        self._clock = clock
        self._ids = ids

    async def delete_client(
        self, request: Request, client: ClientId, *, etag: str, timeout: timedelta
    ) -> tuple[Client, Erasure]:
        """Erase a client, and answer it with the proof.

        Raises:
            ClientNotFoundError: There is none.
            AccountStateError: It is deleted, or about to be.
            StaleAccountEtagError: `etag` is given and not the present one.
            DeadlineError: It is not done within `timeout`; the work goes on.
        """

        async def plan(work: UnitOfWork) -> None:
            found = await work.clients.get(client, for_update=True)
            require_etag(f"clients/{client}", etag, found.version)
            await work.clients.save(found.enter(AccountState.DELETING, at=self._clock.now()))

        erasure = await self._delete(request, "DeleteClient", client, None, plan, timeout)
        async with self._units.begin() as work:
            return await work.clients.get(client), erasure

    async def delete_freelancer(
        self, request: Request, client: ClientId, freelancer: FreelancerId, *, etag: str, timeout: timedelta
    ) -> tuple[Freelancer, Erasure]:
        """Erase a freelancer of one client, and answer it with the proof.

        Raises:
            ClientNotFoundError, FreelancerNotFoundError: None such, or not the caller's.
            AccountStateError: It is deleted, or about to be.
            StaleAccountEtagError: `etag` is given and not the present one.
            DeadlineError: It is not done within `timeout`; the work goes on.
        """
        require_reachable(request.caller, client)

        async def plan(work: UnitOfWork) -> None:
            await work.clients.find(client, for_update=True)  # locks are taken in this order everywhere
            found = await work.freelancers.get(client, freelancer, for_update=True)
            require_etag(f"clients/{client}/freelancers/{freelancer}", etag, found.version)
            await work.freelancers.save(found.enter(AccountState.DELETING, at=self._clock.now()))

        erasure = await self._delete(request, "DeleteFreelancer", client, freelancer, plan, timeout)
        async with self._units.begin() as work:
            return await work.freelancers.get(client, freelancer), erasure

    async def get(self, caller: Caller, client: ClientId, erasure: ErasureId) -> Erasure:
        """One erasure, complete or not.

        Raises:
            ErasureNotFoundError: There is none of this client, or the client is not the caller's.
        """
        async with self._units.begin() as work:
            found = await work.erasures.get(erasure)
        if found.client != client or not _reaches(caller, client):
            raise ErasureNotFoundError(erasure)
        return found

    async def list(self, caller: Caller, client: ClientId, *, page_size: int, page_token: str) -> Page[Erasure]:
        """One page of a client's erasures, oldest first.

        Raises:
            ClientNotFoundError: There is none, or it is not the caller's.
            InvalidRequestError: The token is not one of this list.
        """
        require_reachable(caller, client)
        async with self._units.begin() as work:
            await work.clients.get(client)
            return await work.erasures.list(client, page_size=page_of(page_size), page_token=page_token)

    async def _delete(
        self,
        request: Request,
        method: str,
        client: ClientId,
        freelancer: FreelancerId | None,
        plan: Callable[[UnitOfWork], Awaitable[None]],
        timeout: timedelta,
    ) -> Erasure:
        deadline = self._clock.monotonic() + timeout.total_seconds()
        now = self._clock.now()
        erasure = Erasure(id=ErasureId(self._ids.new("era")), client=client, freelancer=freelancer, begin_time=now)
        claim = RequestRecord(
            client=namespace_of(request.caller),
            request_id=request.request_id,
            method=method,
            subject=request.caller.subject,
            body_hash=request.body_hash,
            sandbox=SandboxId(erasure.name),
            create_time=now,
            expire_time=now + REQUEST_KEPT_FOR,
        )
        async with self._units.begin() as work:
            earlier = await work.requests.claim(claim)
            if earlier is None:
                await plan(work)
                await work.erasures.add(erasure)
                await work.commit()
        if earlier is not None:
            if (earlier.method, earlier.subject, earlier.body_hash) != (claim.method, claim.subject, claim.body_hash):
                raise RequestIdReusedError(claim.request_id)
            wanted = ErasureId(earlier.sandbox.rpartition("/")[2])
        else:
            wanted = erasure.id
            await self._accounts.announce(client)
        failpoint("erasure.after_commit")
        self._eraser.wake()
        return await self._complete(wanted, deadline=deadline)

    async def _complete(self, wanted: ErasureId, *, deadline: float) -> Erasure:
        while True:
            async with self._units.begin() as work:
                found = await work.erasures.get(wanted)
            if found.document:
                return found
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise DeadlineError(
                    f"The erasure {found.name} goes on. Repeat the call with the same request id for its proof, "
                    "or ask GetErasure.",
                    erasure=found.name,
                )
            await self._changes.wait(SandboxId(found.name), timeout=min(left, POLL_SECONDS))


def _reaches(caller: Caller, client: ClientId) -> bool:
    try:
        require_reachable(caller, client)
    except ClientNotFoundError:
        return False
    return True
