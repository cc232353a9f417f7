"""The sessions of one process: found by our id or by the CLI's, with the one that spoke last, and what changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sandboxd.model.events import EventBody
from sandboxd.model.ids import SessionId
from sandboxd.stream.acp.state import AcpSession, Phase
from sandboxd.stream.dialect import SessionChange
from sandboxd.stream.framing import LongLine
from sandboxd.stream.outbox import Outbox
from sandboxd.stream.reading import objects, text, texts
from sandboxd.stream.unparsed import unparsed


class Sessions:
    """Keeps the sessions, and emits events into them."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._sessions: dict[SessionId, AcpSession] = {}
        self._by_cli: dict[str, SessionId] = {}
        self._dropped: dict[str, None] = {}
        self._active: SessionId | None = None
        self._changed: dict[SessionId, None] = {}

    def __iter__(self) -> Iterator[AcpSession]:
        """All sessions, oldest first."""
        return iter(list(self._sessions.values()))

    def find(self, session: SessionId | None) -> AcpSession | None:
        """The session with our id."""
        return self._sessions.get(session) if session is not None else None

    def find_cli(self, cli_session: str) -> AcpSession | None:
        """The session with the CLI's id."""
        return self.find(self._by_cli.get(cli_session))

    def known(self, session: SessionId) -> AcpSession:
        """The session with our id; that there is one is the driver's business."""
        found = self._sessions.get(session)
        if found is None:
            raise ValueError(f"session {session} is not open in this process")
        return found

    def begin(self, session: SessionId) -> AcpSession:
        """The session with our id, made where it is new."""
        return self._sessions.setdefault(session, AcpSession(id=session))

    def adopt(self, cli_session: str) -> AcpSession:
        """Take a session that another client made; it goes by the CLI's id."""
        session = self.find_cli(cli_session) or self.begin(SessionId(cli_session))
        session.cli_session, session.phase = cli_session, Phase.OPEN
        self.changed(session)
        return session

    def route(self, cli_session: str) -> AcpSession | None:
        """The session that a message of the CLI is for; it is the one that spoke last now."""
        session = self.find_cli(cli_session)
        if session is not None:
            self._active = session.id
        return session

    def dropped(self, cli_session: str) -> bool:
        """Tell whether a session with the CLI's id was closed."""
        return cli_session in self._dropped

    def changed(self, session: AcpSession) -> None:
        """Note that the driver must hear of the session's present state."""
        if session.cli_session:
            self._by_cli[session.cli_session] = session.id
        self._changed[session.id] = None

    def shut(self, session: AcpSession) -> None:
        """The CLI does not have the session open any more."""
        session.phase = Phase.CLOSED
        self.changed(session)

    def drop(self, session: AcpSession) -> None:
        """Forget a session; what still comes for it is not for anybody."""
        self._sessions.pop(session.id, None)
        if session.cli_session:
            self._by_cli.pop(session.cli_session, None)
            self._dropped[session.cli_session] = None
        if self._active == session.id:
            self._active = None

    def emit(self, session: AcpSession | None, body: EventBody) -> None:
        """An event, in the turn that the session is at."""
        turn = session.current() if session is not None else None
        self._outbox.emit(session.id if session is not None else None, turn.id if turn is not None else None, body)

    def emit_lost(self, line: bytes | LongLine, why: str) -> None:
        """Bytes that belong nowhere go to the session that spoke last, so that somebody sees them."""
        self.emit(self.find(self._active) or next(iter(self), None), unparsed(line, why))

    def report(self) -> None:
        """Lay down what changed, for the driver."""
        for session in self._changed:
            found = self._sessions.get(session)
            if found is not None:
                self._outbox.session(_change(found))
        self._changed.clear()

    def to_json(self) -> dict[str, Any]:
        """As the snapshot has it."""
        sessions = [session.to_json() for session in self._sessions.values()]
        return {"all": sessions, "dropped": list(self._dropped), "active": self._active}

    def load_json(self, value: Mapping[str, Any]) -> None:
        """From the snapshot."""
        self._sessions = {found.id: found for found in map(AcpSession.from_json, objects(value, "all"))}
        self._by_cli = {found.cli_session: found.id for found in self if found.cli_session}
        self._dropped = dict.fromkeys(texts(value, "dropped"))
        active = text(value, "active")
        self._active = SessionId(active) if active else None


def _change(session: AcpSession) -> SessionChange:
    return SessionChange(
        session=session.id,
        cli_session=session.cli_session,
        mode=session.mode,
        model=session.model,
        open=session.phase is Phase.OPEN,
    )
