"""Where a machine lays down what it produces until the driver takes it. Shared by the dialects; pure."""

from __future__ import annotations

from sandboxd.model.events import EventBody
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.session import StopReason, TurnState
from sandboxd.stream.dialect import Emitted, SessionChange, Spawn, Step, TurnChange


class Outbox:
    """Collects one step."""

    def __init__(self) -> None:
        self._events: list[Emitted] = []
        self._stdin: list[bytes] = []
        self._turns: list[TurnChange] = []
        self._sessions: dict[SessionId, SessionChange] = {}
        self._spawn: Spawn | None = None
        self._interrupt = False

    def emit(self, session: SessionId | None, turn: TurnId | None, body: EventBody) -> None:
        """An event comes out."""
        self._events.append(Emitted(session=session, turn=turn, body=body))

    def write(self, line: bytes) -> None:
        """A line goes to the process."""
        self._stdin.append(line)

    def turn(self, session: SessionId, turn: TurnId, state: TurnState, stop: StopReason | None = None) -> None:
        """A turn is in another state."""
        self._turns.append(TurnChange(session=session, turn=turn, state=state, stop_reason=stop))

    def session(self, change: SessionChange) -> None:
        """Something about a session changed; the last one of a step counts."""
        self._sessions[change.session] = change

    def spawn(self, spawn: Spawn) -> None:
        """A process is needed."""
        self._spawn = spawn

    def interrupt(self) -> None:
        """The process shall end."""
        self._interrupt = True

    def take(self) -> Step:
        """Hand everything over, and begin the next step."""
        step = Step(
            events=tuple(self._events),
            stdin=b"".join(self._stdin),
            turns=tuple(self._turns),
            sessions=tuple(self._sessions.values()),
            spawn=self._spawn,
            interrupt=self._interrupt,
        )
        self._events.clear()
        self._stdin.clear()
        self._turns.clear()
        self._sessions.clear()
        self._spawn = None
        self._interrupt = False
        return step
