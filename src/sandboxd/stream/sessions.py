"""The directory of sessions: list, get, history and delete, for callers who are not in a stream."""

from __future__ import annotations

from collections.abc import Sequence

from sandboxd.model.caller import Caller, Request
from sandboxd.model.errors import RequestIdReusedError
from sandboxd.model.events import SessionEvent
from sandboxd.model.ids import SandboxId, SessionId
from sandboxd.model.paging import Page
from sandboxd.model.session import Session
from sandboxd.stream.errands import ForgetSession, Order
from sandboxd.stream.hub import StreamHub
from sandboxd.stream.owner import Services
from sandboxd.stream.ports import SessionOrder
from sandboxd.stream.routing import ErrandRouter


class SessionDirectory:
    """Sessions as things to find and to delete."""

    def __init__(self, services: Services, hub: StreamHub, router: ErrandRouter) -> None:
        self._services = services
        self._hub = hub
        self._router = router

    async def list(
        self,
        caller: Caller,
        sandbox: SandboxId,
        *,
        order: SessionOrder,
        title_contains: str,
        page_size: int,
        page_token: str,
    ) -> Page[Session]:
        """One page of a sandbox's sessions. Raises SandboxNotFoundError."""
        await self._hub.visible(caller, sandbox)
        return await self._services.sessions.list(
            sandbox,
            client=caller.client,
            freelancer=caller.freelancer,
            order=order,
            title_contains=title_contains,
            page_size=page_size,
            page_token=page_token,
        )

    async def get(self, caller: Caller, sandbox: SandboxId, session: SessionId) -> Session:
        """One session. Raises SessionNotFoundError."""
        return await self._hub.session_of(caller, sandbox, session)

    async def history(
        self, caller: Caller, sandbox: SandboxId, session: SessionId, *, after: int, limit: int
    ) -> tuple[Sequence[SessionEvent], int]:
        """Events after a sequence number, at most `limit` and about 2 MiB, and where to go on; 0 at the end."""
        row = await self._hub.session_of(caller, sandbox, session)
        events = await self._services.journal.events(session, after=after, limit=limit)
        last = events[-1].sequence if events else row.head_sequence
        return events, last if last < row.head_sequence else 0

    async def delete(self, request: Request, sandbox: SandboxId, session: SessionId) -> None:
        """Delete a session with its log, once per request id; the ledger keeps its usage.

        Raises:
            SessionNotFoundError: None such, or deleted by another request.
            TurnInProgressError: A turn is open.
            RequestIdReusedError: The id was used for something else.
        """
        caller = request.caller
        known = await self._services.journal.find_command(caller.client, request.request_id)
        if known is None:
            await self._forget(request, sandbox, session)
        elif known.body_hash != request.body_hash or known.session != session:
            raise RequestIdReusedError(request.request_id)
        await self._services.sessions.delete(session, at=self._services.clock.now())

    async def _forget(self, request: Request, sandbox: SandboxId, session: SessionId) -> None:
        """Take the session out of its conversation, with the request made durable: a crash after it is repeated."""
        row = await self._hub.session_of(request.caller, sandbox, session)
        await self._router.do(
            Order(
                caller=request.caller,
                sandbox=row.sandbox,
                session=session,
                request_id=request.request_id,
                body_hash=request.body_hash,
                deed=ForgetSession(),
            )
        )
