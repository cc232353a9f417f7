"""Opening conversations, one after the other: authenticate, make or load, set the mode, set the model.

One after the other, because the key given by `authenticate` is the one that the next made or loaded session keeps.

The history of a loaded session comes mostly after the answer to `session/load`, with no mark at its end, and a long
one is still coming when the next requests are answered. But the CLI sends one message after the other through one
queue, and as long as there is history left, one piece of it is in that queue. So between the answers to two requests,
of which the second was sent after the first was answered, there is a piece of it, or it is over. `session/set_mode` is
that request: it costs nothing, and is repeated until an answer comes with no history before it. Tried with 6,000
messages of history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sandboxd.model.events import Error, Notice, SessionReady
from sandboxd.model.ids import SessionId
from sandboxd.stream.acp.content import names
from sandboxd.stream.acp.state import AcpSession, Opening, Pending, Phase, RequestKind
from sandboxd.stream.acp.wire import Wire
from sandboxd.stream.codec import decode_error, encode_body
from sandboxd.stream.cutting import shorten
from sandboxd.stream.failures import (
    CLI_AUTH_REQUIRED,
    CLI_ERROR,
    MODE_NOT_AVAILABLE,
    MODEL_NOT_AVAILABLE,
    SESSION_LOAD_FAILED,
    failure_from_rpc,
    named_failure,
)
from sandboxd.stream.limits import MAX_NAME_BYTES
from sandboxd.stream.outbox import Outbox
from sandboxd.stream.reading import obj, objects, text

AUTH_METHOD = "gemini-api-key"


class Openings:
    """The queue of openings; its head is the one that is being done."""

    def __init__(
        self,
        outbox: Outbox,
        wire: Wire,
        *,
        find: Callable[[Opening], AcpSession | None],
        opened: Callable[[AcpSession], None],
        failed: Callable[[AcpSession, Error], None],
    ) -> None:
        """Take what the machine does with sessions.

        Args:
            outbox: Where events go.
            wire: Where requests go.
            find: The session of an opening; None where it was closed meanwhile.
            opened: Called when a session is open.
            failed: Called when a session could not be opened.
        """
        self._outbox = outbox
        self._wire = wire
        self._find = find
        self._opened = opened
        self._failed = failed
        self._queue: list[Opening] = []
        self._greeted = False
        self._refusal: Error | None = None
        self._cli_version = ""

    def start(self) -> None:
        """Greet the agent."""
        params = {
            "protocolVersion": 1,
            # The agent works on its own files; with `fs` it would leave reading and writing to us.
            "clientCapabilities": {"fs": {"readTextFile": False, "writeTextFile": False}},
            "clientInfo": {"name": "sandboxd", "title": "sandboxd", "version": "1"},
        }
        self._wire.request("initialize", params, Pending(kind=RequestKind.INITIALIZE))

    def add(self, opening: Opening) -> None:
        """Queue an opening; it begins at once where nothing is before it."""
        self._queue.append(opening)
        if self._refusal is not None:
            self._fail(self._refusal)
        elif self._greeted and len(self._queue) == 1:
            self._begin()

    def greeted(self, result: Mapping[str, Any]) -> None:
        """The agent introduced itself to us: openings can begin."""
        self.introduced(result)
        self._greeted = True
        self._begin()

    def introduced(self, result: Mapping[str, Any]) -> None:
        """The agent said who it is."""
        self._cli_version = shorten(text(obj(result, "agentInfo"), "version"), MAX_NAME_BYTES)

    def refused(self, error: Error) -> None:
        """The agent refused the greeting: nothing can be opened in this process."""
        self._refusal = error
        while self._queue:
            self._fail(error)

    def answered(self, pending: Pending, result: Mapping[str, Any]) -> None:
        """A request of the head's was answered."""
        opening = self._queue[0]
        session = self._find(opening)
        if session is None:
            self._next()
            return
        if pending.kind is RequestKind.NEW and not text(result, "sessionId"):
            self._fail(named_failure(CLI_ERROR, "The CLI made a session and gave it no id."))
            return
        match pending.kind:
            case RequestKind.AUTHENTICATE:
                self._make_or_load(opening, session)
            case RequestKind.NEW | RequestKind.LOAD:
                opening.resumed = pending.kind is RequestKind.LOAD
                learn(session, result)
                session.replayed = False
                self._set_mode(opening, session)
            case RequestKind.SET_MODE:
                session.mode = pending.value
                self._mode_set(opening, session)
            case _:
                session.model = pending.value
                self._ready(opening, session)

    def failed(self, pending: Pending, rpc_error: Mapping[str, Any]) -> None:
        """A request of the head's was answered with an error."""
        opening = self._queue[0]
        session = self._find(opening)
        error = failure_from_rpc(rpc_error)
        if session is None:
            self._next()
        elif pending.kind is RequestKind.LOAD and error.reason != CLI_AUTH_REQUIRED:
            self._lost(opening, session, error)
        elif pending.kind is RequestKind.SET_MODE:
            if opening.mode:
                self._outbox.emit(session.id, None, named_failure(MODE_NOT_AVAILABLE, error.message))
                opening.mode = ""
            self._mode_set(opening, session)
        elif pending.kind is RequestKind.SET_MODEL:
            self._outbox.emit(session.id, None, named_failure(MODEL_NOT_AVAILABLE, error.message))
            self._ready(opening, session)
        else:
            self._fail(error)

    def forget(self, session: SessionId) -> None:
        """The session was closed: what waits is dropped, what is under way comes to nothing."""
        for opening in self._queue:
            if opening.session == session:
                opening.session = SessionId("")
        self._queue[1:] = [opening for opening in self._queue[1:] if opening.session]

    def drop_all(self) -> None:
        """The process is gone."""
        self._queue.clear()

    def announce(self, session: AcpSession, *, resumed: bool) -> None:
        """Say that the session is open."""
        ready = SessionReady(
            resumed=resumed,
            mode=session.mode,
            modes=tuple(session.modes),
            model=session.model,
            models=tuple(session.models),
            cli_version=self._cli_version,
        )
        self._outbox.emit(session.id, None, ready)

    def to_json(self) -> dict[str, Any]:
        """As the snapshot has it."""
        queue = [opening.to_json() for opening in self._queue]
        refusal = encode_body(self._refusal) if self._refusal is not None else None
        return {"queue": queue, "greeted": self._greeted, "refusal": refusal, "cli_version": self._cli_version}

    def load_json(self, value: Mapping[str, Any]) -> None:
        """From the snapshot."""
        self._queue = [Opening.from_json(item) for item in objects(value, "queue")]
        self._greeted = value.get("greeted") is True
        self._refusal = decode_error(obj(value, "refusal"))
        self._cli_version = text(value, "cli_version")

    def _begin(self) -> None:
        while self._queue and self._find(self._queue[0]) is None:
            del self._queue[0]
        if not self._queue:
            return
        opening = self._queue[0]
        params = {"methodId": AUTH_METHOD, "_meta": {"api-key": opening.hint}}
        self._wire.request("authenticate", params, self._pending(RequestKind.AUTHENTICATE, opening))

    def _next(self) -> None:
        if self._queue:
            del self._queue[0]
        self._begin()

    def _make_or_load(self, opening: Opening, session: AcpSession) -> None:
        params: dict[str, Any] = {"cwd": opening.cwd, "mcpServers": []}
        if opening.cli_session:
            session.cli_session = opening.cli_session
            session.muted, session.commands_seen = True, False
            params["sessionId"] = opening.cli_session
            self._wire.request("session/load", params, self._pending(RequestKind.LOAD, opening))
        else:
            self._wire.request("session/new", params, self._pending(RequestKind.NEW, opening))

    def _lost(self, opening: Opening, session: AcpSession, error: Error) -> None:
        """The conversation cannot be loaded: go on with a new one, and say so."""
        self._outbox.emit(session.id, None, named_failure(SESSION_LOAD_FAILED, error.message))
        message = "The CLI has lost the conversation; it goes on without memory of what was said before."
        self._outbox.emit(session.id, None, Notice(code="CONVERSATION_LOST", message=message))
        opening.cli_session = session.cli_session = ""
        session.muted = False
        self._make_or_load(opening, session)

    def _set_mode(self, opening: Opening, session: AcpSession) -> None:
        wanted = opening.mode or session.mode
        if opening.resumed or wanted != session.mode:
            params = {"sessionId": session.cli_session, "modeId": wanted or "default"}
            self._wire.request("session/set_mode", params, self._pending(RequestKind.SET_MODE, opening, wanted))
        else:
            self._set_model(opening, session)

    def _mode_set(self, opening: Opening, session: AcpSession) -> None:
        replayed, session.replayed = session.replayed, False
        if replayed:
            self._set_mode(opening, session)
        else:
            self._set_model(opening, session)

    def _set_model(self, opening: Opening, session: AcpSession) -> None:
        if opening.model and opening.model != session.model:
            params = {"sessionId": session.cli_session, "modelId": opening.model}
            self._wire.request(
                "session/set_model", params, self._pending(RequestKind.SET_MODEL, opening, opening.model)
            )
        else:
            self._ready(opening, session)

    def _ready(self, opening: Opening, session: AcpSession) -> None:
        session.phase = Phase.OPEN
        self.announce(session, resumed=opening.resumed)
        self._opened(session)
        self._next()

    def _fail(self, error: Error) -> None:
        session = self._find(self._queue[0])
        del self._queue[0]
        if session is not None:
            self._failed(session, error)
        if self._greeted:
            self._begin()

    @staticmethod
    def _pending(kind: RequestKind, opening: Opening, value: str = "") -> Pending:
        return Pending(kind=kind, session=opening.session, value=value, opening=True)


def learn(session: AcpSession, result: Mapping[str, Any]) -> None:
    """Note what the answer to `session/new` or `session/load` says about the session."""
    modes, models = obj(result, "modes"), obj(result, "models")
    if text(result, "sessionId"):
        session.cli_session = text(result, "sessionId")
    session.modes = list(_ids(objects(modes, "availableModes"), "id"))
    session.models = list(_ids(objects(models, "availableModels"), "modelId"))
    session.mode = shorten(text(modes, "currentModeId"), MAX_NAME_BYTES)
    session.model = shorten(text(models, "currentModelId"), MAX_NAME_BYTES)


def _ids(values: Sequence[Mapping[str, Any]], key: str) -> Sequence[str]:
    return names(value.get(key) for value in values)
