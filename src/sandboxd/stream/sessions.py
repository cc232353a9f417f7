"""The directory of sessions: list, get, history and delete, for callers who are not in a stream."""

from __future__ import annotations

from collections.abc import Sequence

from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import ForbiddenError, RequestIdReusedError, TurnInProgressError
from sandboxd.model.events import SessionEvent
from sandboxd.model.ids import RequestId, SandboxId, SessionId
from sandboxd.model.paging import Page
from sandboxd.model.session import Session
from sandboxd.stream.custody import Custody
from sandboxd.stream.hub import StreamHub
from sandboxd.stream.owner import Services
from sandboxd.stream.ports import SessionOrder


class SessionDirectory:
    """Sessions as things to find and to delete."""

    def __init__(self, services: Services, hub: StreamHub, custody: Custody) -> None:
        self._services = services
        self._hub = hub
        self._custody = custody

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
    ) -> Sequence[SessionEvent]:
        """Events of a session after a sequence number, at most `limit` and about 2 MiB."""
        await self._hub.session_of(caller, sandbox, session)
        return await self._services.journal.events(session, after=after, limit=limit)

    async def delete(
        self, caller: Caller, sandbox: SandboxId, session: SessionId, *, request_id: RequestId, body_hash: bytes
    ) -> None:
        """Delete a session with its log; the ledger keeps its usage. A session that is gone is success.

        Raises:
            TurnInProgressError: A turn is open.
            ForbiddenError: An auditor changes nothing.
            RequestIdReusedError: The id was used for something else.
        """
        if caller.role is Role.AUDITOR:
            raise ForbiddenError("An auditor cannot delete sessions.")
        known = await self._services.journal.find_command(caller.client, request_id)
        if known is not None and (known.body_hash != body_hash or known.session != session):
            raise RequestIdReusedError(request_id)
        if known is not None:
            return
        row = await self._hub.session_of(caller, sandbox, session)
        if row.open_turn is not None:
            raise TurnInProgressError(session, turn=row.open_turn)
        owner = await self._custody.owner(row.sandbox, only_if_used=True)
        if owner is not None:
            await owner.act(lambda: owner.forget(session))
        await self._services.sessions.delete(session, at=self._services.clock.now())
