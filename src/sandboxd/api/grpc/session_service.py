"""SessionService: decode, call, encode."""

from __future__ import annotations

from typing import Any

import grpc.aio
from typing_extensions import override

from sandboxd.api.grpc.codec_events import encode_event
from sandboxd.api.grpc.codec_session import ORDERS, encode_session
from sandboxd.api.grpc.names import sandbox_id, session_id
from sandboxd.api.grpc.ports import SessionDirectory
from sandboxd.api.grpc.requests import request_of
from sandboxd.api.grpc.rpc import current_rpc
from sandboxd.v1 import session_pb2 as pb
from sandboxd.v1 import session_pb2_grpc

DEFAULT_PAGE = 50
DEFAULT_HISTORY_PAGE = 200
MAX_PAGE = 1000

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here never touch the context's own request and response types."""


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """Serves sessions and their history."""

    def __init__(self, *, sessions: SessionDirectory) -> None:
        self._sessions = sessions

    @override
    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        """List the sessions of one sandbox."""
        page = await self._sessions.list(
            current_rpc().caller,
            sandbox_id(request.sandbox),
            order=ORDERS[request.order_by],
            title_contains=request.title_contains,
            page_size=min(request.page_size or DEFAULT_PAGE, MAX_PAGE),
            page_token=request.page_token,
        )
        return pb.ListSessionsResponse(
            sessions=[encode_session(session) for session in page.items], next_page_token=page.next_token
        )

    @override
    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.GetSessionResponse:
        """Return one session."""
        session = await self._sessions.get(current_rpc().caller, sandbox_id(request.name), session_id(request.name))
        return pb.GetSessionResponse(session=encode_session(session))

    @override
    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        """Return a part of a session's log."""
        sandbox = sandbox_id(request.name)
        events, next_after = await self._sessions.history(
            current_rpc().caller,
            sandbox,
            session_id(request.name),
            after=request.after_sequence,
            limit=min(request.page_size or DEFAULT_HISTORY_PAGE, MAX_PAGE),
        )
        return pb.GetHistoryResponse(
            events=[encode_event(event, sandbox=sandbox) for event in events], next_after_sequence=next_after
        )

    @override
    async def DeleteSession(self, request: pb.DeleteSessionRequest, context: Context) -> pb.DeleteSessionResponse:
        """Delete a session with its log."""
        made = request_of(request, request.request_id)
        await self._sessions.delete(made, sandbox_id(request.name), session_id(request.name))
        return pb.DeleteSessionResponse()
