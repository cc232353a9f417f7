"""Modes and models that somebody asks for, now or when the session is open; each ends in an event with its request."""

from __future__ import annotations

from collections.abc import Iterable

from sandboxd.model.events import Error, EventBody, ModeChanged, ModelChanged
from sandboxd.stream.acp.messages import Reply
from sandboxd.stream.acp.state import AcpSession, Pending, Phase, RequestKind, Wish
from sandboxd.stream.acp.wire import Wire
from sandboxd.stream.failures import (
    CLI_ERROR,
    MODE_NOT_AVAILABLE,
    MODEL_NOT_AVAILABLE,
    failure_from_rpc,
    named_failure,
)

_ERRORS = {RequestKind.SET_MODE: MODE_NOT_AVAILABLE, RequestKind.SET_MODEL: MODEL_NOT_AVAILABLE}


class Wishes:
    """Sends what people wish, and reads the answers."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def want(self, session: AcpSession, wish: Wish) -> None:
        """Ask the agent, or note it until the session is open."""
        if session.phase is not Phase.OPEN:
            session.wishes.append(wish)
            return
        kind = RequestKind.SET_MODE if wish.mode else RequestKind.SET_MODEL
        key = "modeId" if wish.mode else "modelId"
        value = wish.mode or wish.model
        pending = Pending(kind=kind, session=session.id, value=value, request_id=wish.request_id)
        self._wire.request(kind.value, {"sessionId": session.cli_session, key: value}, pending)

    def flush(self, session: AcpSession) -> None:
        """The session is open: ask for everything that was noted."""
        wishes, session.wishes = session.wishes, []
        for wish in wishes:
            self.want(session, wish)

    @staticmethod
    def answered(session: AcpSession | None, pending: Pending, reply: Reply) -> EventBody | None:
        """What an answer means; also to methods that only another client uses, of which errors are told."""
        if reply.error is not None:
            said = failure_from_rpc(reply.error).message
            return named_failure(_ERRORS.get(pending.kind, CLI_ERROR), said, request_id=pending.request_id)
        if session is not None and pending.kind is RequestKind.SET_MODE:
            session.mode = pending.value
            return ModeChanged(mode=pending.value, request_id=pending.request_id)
        if session is not None and pending.kind is RequestKind.SET_MODEL:
            session.model = pending.value
            return ModelChanged(model=pending.value, request_id=pending.request_id)
        return None

    @staticmethod
    def refuse(session: AcpSession, error: Error) -> Iterable[Error]:
        """The session will not open: an error for each wish that waited."""
        wishes, session.wishes = session.wishes, []
        return [named_failure(error.reason, error.message, request_id=wish.request_id) for wish in wishes]
