"""The book of one conversation: what is durable, what the next append will add, and the numbers of its events.

Pure bookkeeping. It gives sequence numbers, keeps the rows of sessions and turns as they will be after the append, and
turns a machine's step into an `Entry`. The owner decides what happens; the journal makes it durable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import structlog

from sandboxd.model.errors import SessionNotFoundError, TurnInProgressError
from sandboxd.model.events import AttachmentInfo, EventBody, SessionEvent, Text, Thought, TurnCompleted, TurnStarted
from sandboxd.model.ids import RequestId, SessionId, TurnId
from sandboxd.model.session import PromptInput, Session, StopReason, Turn, TurnState
from sandboxd.model.sources import Clock, IdSource
from sandboxd.stream.dialect import Emitted, Step
from sandboxd.stream.ports import Command, Conversation, Entry, StdinRecord

log = structlog.get_logger(__name__)

TITLE_CHARACTERS: Final = 80
"""First characters of the first prompt that become the title of a session without one."""
UPDATE_STEP: Final = timedelta(seconds=5)
"""How much a session's `update_time` lags behind its log at most. It is indexed: to move it with every chunk wrote all
indexes of the row anew for each, a third of an append's log."""
_ENDED = (TurnState.COMPLETED, TurnState.FAILED)


class ConversationBook:
    """Rows of one conversation in memory, ahead of the journal by at most one entry."""

    def __init__(
        self, row: Conversation, *, sessions: Iterable[Session], turns: Iterable[Turn], clock: Clock, ids: IdSource
    ) -> None:
        self.row = row
        self._clock = clock
        self._ids = ids
        self._sessions = {session.id: session for session in sessions}
        self._turns = {turn.id: turn for turn in turns}
        self._events: list[SessionEvent] = []
        self._commands: list[Command] = []
        self._changed_sessions: set[SessionId] = set()
        self._changed_turns: dict[TurnId, Turn] = {}
        self._stdin = b""
        self._moved = False

    # ------------------------------------------------------------------ reading

    def session(self, session: SessionId) -> Session:
        """A session as it will be. Raises SessionNotFoundError."""
        try:
            return self._sessions[session]
        except KeyError:
            raise SessionNotFoundError(session) from None

    @property
    def sessions(self) -> Mapping[SessionId, Session]:
        """All known sessions."""
        return self._sessions

    @property
    def open_turns(self) -> Sequence[Turn]:
        """Turns that have not ended, oldest first."""
        return sorted(self._turns.values(), key=lambda turn: turn.id)

    def turn_of(self, session: SessionId) -> Turn | None:
        """The open turn of a session."""
        row = self._sessions.get(session)
        open_turn = None if row is None else row.open_turn
        return None if open_turn is None else self._turns.get(open_turn)

    def turn(self, turn: TurnId) -> Turn | None:
        """An open turn."""
        return self._turns.get(turn)

    # ------------------------------------------------------------------ changing

    def know(self, session: Session) -> None:
        """Learn of a session that was made by an open."""
        self._sessions.setdefault(session.id, session)

    def forget(self, session: SessionId) -> None:
        """A session was deleted."""
        self._sessions.pop(session, None)
        self._changed_sessions.discard(session)

    def set_process(self, *, incarnation: Any, process: str, dialect: str) -> None:
        """The conversation has another process; its output and its stdin begin at 0 again."""
        self.row = replace(
            self.row, incarnation=incarnation, process=process, dialect=dialect, consumed=0, written=0, snapshot={}
        )
        self._moved = True

    def clear_process(self) -> None:
        """The process is gone."""
        self.row = replace(self.row, process="", snapshot={})
        self._moved = True

    def command(self, command: Command) -> None:
        """Remember a command with what it changes."""
        self._commands.append(command)

    def emit(self, session: SessionId, body: EventBody, *, turn: TurnId | None = None) -> None:
        """Number an event of a session."""
        row = self._sessions[session]
        now = self._clock.now()
        sequence = row.head_sequence + 1
        self._events.append(SessionEvent(session=session, sequence=sequence, turn=turn, event_time=now, body=body))
        streamed = isinstance(body, Text | Thought) and now - row.update_time < UPDATE_STEP
        self._save(replace(row, head_sequence=sequence, update_time=row.update_time if streamed else now))

    def start_turn(
        self, session: SessionId, *, request_id: RequestId, prompt: PromptInput, traceparent: str = ""
    ) -> Turn:
        """Accept a prompt: a QUEUED turn with its event.

        Raises:
            TurnInProgressError: The session has an open turn.
        """
        row = self.session(session)
        if row.open_turn is not None:
            raise TurnInProgressError(session, turn=row.open_turn)
        turn = Turn(
            id=TurnId(self._ids.new("trn")),
            session=session,
            number=row.turns + 1,
            request_id=request_id,
            state=TurnState.QUEUED,
            prompt=prompt,
            start_time=self._clock.now(),
            traceparent=traceparent,
        )
        self._save(replace(row, turns=turn.number, open_turn=turn.id, title=row.title or title_of(prompt)))
        self._put(turn)
        self.emit(
            session,
            TurnStarted(
                request_id=request_id,
                number=turn.number,
                text=prompt.text,
                attachments=tuple(describe(item.name, item.mime_type, item.data) for item in prompt.attachments),
            ),
            turn=turn.id,
        )
        return turn

    def end_turn(self, turn: Turn, stop_reason: StopReason) -> None:
        """End a turn that the CLI never got, or that nobody can end any more."""
        body = TurnCompleted(stop_reason=stop_reason, duration_ms=self.duration_ms(turn))
        self.emit(turn.session, body, turn=turn.id)
        self._close(turn, stop_reason)

    def duration_ms(self, turn: Turn) -> int:
        """Milliseconds from the acceptance of a turn until now."""
        return max(0, round((self._clock.now() - turn.start_time).total_seconds() * 1000))

    def set_preferences(self, session: SessionId, *, mode: str = "", model: str = "") -> None:
        """Set the mode or model that a session has from its next opening on."""
        row = self.session(session)
        self._save(replace(row, mode=mode or row.mode, model=model or row.model))

    # ------------------------------------------------------------------ the machine's step

    def absorb(self, step: Step) -> None:
        """Take over what a machine produced."""
        for emitted in step.events:
            self._absorb_event(emitted)
        for change in step.sessions:
            row = self._sessions.get(change.session)
            if row is not None:
                self._save(
                    replace(
                        row,
                        cli_session=change.cli_session,
                        mode=change.mode or row.mode,
                        model=change.model or row.model,
                    )
                )
        for moved in step.turns:
            turn = self._turns.get(moved.turn)
            if turn is None:
                continue
            if moved.state in _ENDED:
                self._close(turn, moved.stop_reason or StopReason.ERROR, state=moved.state)
            else:
                self._put(replace(turn, state=moved.state, stop_reason=moved.stop_reason))
        self._stdin += step.stdin

    def entry(self, *, consumed: int, snapshot: Mapping[str, Any]) -> Entry | None:
        """Everything since the last entry, for the journal; None where nothing changed."""
        record = StdinRecord(offset=self.row.written, data=self._stdin) if self._stdin else None
        changed = bool(
            record
            or self._events
            or self._commands
            or self._changed_sessions
            or self._changed_turns
            or self._moved
            or consumed != self.row.consumed
        )
        if not changed:
            return None
        self.row = replace(
            self.row, consumed=consumed, written=self.row.written + len(self._stdin), snapshot=dict(snapshot)
        )
        entry = Entry(
            conversation=self.row,
            events=tuple(self._events),
            stdin=record,
            commands=tuple(self._commands),
            sessions=tuple(self._sessions[name] for name in sorted(self._changed_sessions) if name in self._sessions),
            turns=tuple(self._changed_turns.values()),
        )
        self._events, self._commands, self._stdin, self._moved = [], [], b"", False
        self._changed_sessions, self._changed_turns = set(), {}
        return entry

    # ------------------------------------------------------------------ inside

    def _absorb_event(self, emitted: Emitted) -> None:
        session = emitted.session if emitted.session is not None else self._most_recent()
        if session is None or session not in self._sessions:
            log.warning("conversation.homeless_event", sandbox=self.row.sandbox, kind=type(emitted.body).__name__)
            return
        self.emit(session, emitted.body, turn=emitted.turn)

    def _most_recent(self) -> SessionId | None:
        """Where bytes of nobody go: the session that is most likely being looked at."""
        newest = max(
            self._sessions.values(), key=lambda row: (row.open_turn is not None, row.update_time), default=None
        )
        return None if newest is None else newest.id

    def _close(self, turn: Turn, stop_reason: StopReason, *, state: TurnState | None = None) -> None:
        failed = stop_reason in (StopReason.ERROR, StopReason.INTERRUPTED)
        ended = replace(
            turn,
            state=state or (TurnState.FAILED if failed else TurnState.COMPLETED),
            stop_reason=stop_reason,
            end_time=self._clock.now(),
        )
        self._changed_turns[turn.id] = ended
        self._turns.pop(turn.id, None)
        row = self._sessions.get(turn.session)
        if row is not None and row.open_turn == turn.id:
            self._save(replace(row, open_turn=None))

    def _put(self, turn: Turn) -> None:
        self._turns[turn.id] = turn
        self._changed_turns[turn.id] = turn

    def _save(self, session: Session) -> None:
        self._sessions[session.id] = session
        self._changed_sessions.add(session.id)

    def new_id(self, prefix: str) -> str:
        """A new id of that kind."""
        return self._ids.new(prefix)


def title_of(prompt: PromptInput) -> str:
    """A title for a session: the first line of its first prompt, shortened."""
    line = next((part.strip() for part in prompt.text.splitlines() if part.strip()), "")
    return line if len(line) <= TITLE_CHARACTERS else line[: TITLE_CHARACTERS - 1].rstrip() + "…"


def describe(name: str, mime_type: str, data: bytes) -> AttachmentInfo:
    """What the log keeps of an attachment."""
    return AttachmentInfo(name=name, mime_type=mime_type, size=len(data), sha256=hashlib.sha256(data).hexdigest())
