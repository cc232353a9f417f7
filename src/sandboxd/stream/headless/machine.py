"""The headless dialect: every prompt is a process of its own, that reads the prompt from stdin and writes stream-json.

One process at a time, whatever the number of sessions. A new process begins with `Step.spawn`, its output at offset 0;
cancel is a signal (`Step.interrupt`). A run that ends without a result was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sandboxd.model.errors import PermissionNotOpenError, TurnInProgressError
from sandboxd.model.events import CancelRequested, Error, ModeChanged, ModelChanged, Notice, SessionReady
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.session import PromptInput, StopReason, TurnState
from sandboxd.stream.decoding import Rejection, decode_line
from sandboxd.stream.dialect import DialectName, Finishing, SessionChange, Spawn, Step, TurnBill
from sandboxd.stream.failures import SESSION_LOAD_FAILED, named_failure
from sandboxd.stream.framing import Framer, LongLine
from sandboxd.stream.headless.arguments import MODES, run_arguments, run_stdin
from sandboxd.stream.headless.exits import INPUT_REFUSED, judge_exit
from sandboxd.stream.headless.lines import Lines
from sandboxd.stream.headless.state import HeadlessSession, HeadlessTurn
from sandboxd.stream.outbox import Outbox
from sandboxd.stream.outcome import conclude
from sandboxd.stream.reading import obj, objects, text
from sandboxd.stream.unparsed import LINE_CUT, LINE_TOO_LONG, UNKNOWN_METHOD, unparsed

SNAPSHOT_VERSION = 1
_FAILED = frozenset({StopReason.ERROR, StopReason.INTERRUPTED})


class HeadlessDialect:
    """A chain of `gemini -o stream-json` processes, as the port `Dialect` wants it."""

    name = DialectName.HEADLESS

    def __init__(self, *, prompts: Mapping[TurnId, PromptInput] | None = None) -> None:
        """Begin without a process; `prompts` are those that a restored machine has accepted and not started."""
        self.outbox = Outbox()
        self._lines = Lines(self.outbox)
        self._framer = Framer()
        self._sessions: dict[SessionId, HeadlessSession] = {}
        self._prompts = dict(prompts or {})
        self._running: tuple[SessionId, TurnId] | None = None
        self._resuming = False
        self._spoke = False

    @property
    def consumed(self) -> int:
        """See `Dialect`."""
        return self._framer.consumed

    @property
    def finishing(self) -> Sequence[Finishing]:
        """See `Dialect`."""
        return [
            Finishing(session=session.id, turn=turn.id, stop_reason=turn.stop, error=turn.error)
            for session in self._sessions.values()
            for turn in session.turns
            if turn.stop is not None
        ]

    def start(self) -> None:
        """See `Dialect`; there is nothing to greet."""

    def open(self, session: SessionId, *, cli_session: str, cwd: str, mode: str, model: str, hint: str) -> None:  # noqa: ARG002  # the port's; a process has its working directory
        """See `Dialect`."""
        if session in self._sessions:
            return
        known = HeadlessSession(id=session, cli_session=cli_session, mode=mode, model=model, hint=hint)
        self._sessions[session] = known
        models = (model,) if model else ()
        ready = SessionReady(resumed=bool(cli_session), mode=mode, modes=MODES, model=model, models=models)
        self.outbox.emit(session, None, ready)
        self._changed(known)

    def is_open(self, session: SessionId) -> bool:
        """See `Dialect`."""
        return session in self._sessions

    def open_turn(self, session: SessionId) -> TurnId | None:
        """See `Dialect`."""
        known = self._sessions.get(session)
        return known.turns[0].id if known is not None and known.turns else None

    def permissions(self, session: SessionId) -> Mapping[str, Sequence[str]]:  # noqa: ARG002  # the port's
        """See `Dialect`; nobody is asked here."""
        return {}

    def prompt(self, session: SessionId, turn: TurnId, prompt: PromptInput) -> None:
        """See `Dialect`."""
        known = self._known(session)
        if known.turns:
            raise TurnInProgressError(session, turn=known.turns[0].id)
        known.turns.append(HeadlessTurn(id=turn))
        self._prompts[turn] = prompt
        self._run_next()

    def answer(self, session: SessionId, *, permission: str, option: str, request_id: str = "") -> None:  # noqa: ARG002  # the port's
        """See `Dialect`; nobody was asked."""
        raise PermissionNotOpenError(permission)

    def cancel(self, session: SessionId, *, request_id: str = "", reason: str = "") -> bool:
        """See `Dialect`."""
        known = self._known(session)
        turn = next((found for found in known.turns if found.state is not TurnState.FINISHING), None)
        if turn is None or turn.cancelling:
            return False
        turn.cancelling = True
        self.outbox.emit(session, turn.id, CancelRequested(request_id=request_id, reason=reason))
        if turn.state is TurnState.QUEUED:
            self._end(known, turn, StopReason.CANCELLED)
        else:
            self.outbox.interrupt()
        return True

    def set_mode(self, session: SessionId, mode: str, *, request_id: str = "") -> None:
        """See `Dialect`; counts from the next prompt on."""
        known = self._known(session)
        known.mode = mode
        self.outbox.emit(session, None, ModeChanged(mode=mode, request_id=request_id))
        self._changed(known)

    def set_model(self, session: SessionId, model: str, *, request_id: str = "") -> None:
        """See `Dialect`; counts from the next prompt on."""
        known = self._known(session)
        known.model = model
        self.outbox.emit(session, None, ModelChanged(model=model, request_id=request_id))
        self._changed(known)

    def close(self, session: SessionId) -> None:
        """See `Dialect`."""
        known = self._sessions.pop(session, None)
        if known is not None and self._running is not None and self._running[0] == session:
            self.outbox.interrupt()

    def feed(self, data: bytes) -> None:
        """See `Dialect`."""
        for line in self._framer.feed(data):
            self._line(line)

    def exited(self, *, exit_code: int | None, signal: int | None, stderr_tail: str = "") -> None:
        """See `Dialect`."""
        rest = self._framer.end()
        if isinstance(rest, bytes) and rest.strip() and isinstance(decode_line(rest), Rejection):
            self._lost(rest, LINE_CUT)
        elif rest is not None:
            self._line(rest)
        session, turn = self._current()
        if session is not None and turn is not None and turn.stop is None:
            if exit_code == INPUT_REFUSED and self._resuming and not self._spoke and turn.id in self._prompts:
                self._start_over(session, turn, stderr_tail)
                return
            self._prompts.pop(turn.id, None)
            stop, error = judge_exit(exit_code=exit_code, signal=signal, stderr_tail=stderr_tail)
            if turn.cancelling:
                stop, error = StopReason.CANCELLED, None
            self._end(session, turn, stop, error)
        self._running = None
        self._run_next()

    def finish(self, turn: TurnId, bill: TurnBill) -> None:
        """See `Dialect`."""
        for session in self._sessions.values():
            found = session.find_turn(turn)
            if found is None or found.stop is None:
                continue
            stop, bodies = conclude(found.stop, said=found.said, bill=bill)
            for body in bodies:
                self.outbox.emit(session.id, turn, body)
            session.turns.remove(found)
            state = TurnState.FAILED if stop in _FAILED else TurnState.COMPLETED
            self.outbox.turn(session.id, turn, state, stop)
            return

    def take(self) -> Step:
        """See `Dialect`."""
        return self.outbox.take()

    def snapshot(self) -> dict[str, Any]:
        """See `Dialect`."""
        return {
            "version": SNAPSHOT_VERSION,
            "framer": self._framer.snapshot(),
            "sessions": [session.to_json() for session in self._sessions.values()],
            "running": list(self._running) if self._running else None,
            "resuming": self._resuming,
            "spoke": self._spoke,
        }

    @classmethod
    def restore(
        cls, snapshot: Mapping[str, Any], *, prompts: Mapping[TurnId, PromptInput] | None = None
    ) -> HeadlessDialect:
        """Rebuild a machine.

        Args:
            snapshot: What `snapshot` gave.
            prompts: The prompts of turns that are QUEUED, or RUNNING and may have to be started again.

        Raises:
            ValueError: The snapshot is of a version that this one cannot read.
        """
        if snapshot.get("version") != SNAPSHOT_VERSION:
            raise ValueError(f"snapshot of version {snapshot.get('version')}, not {SNAPSHOT_VERSION}")
        machine = cls(prompts=prompts)
        machine._framer = Framer.restore(obj(snapshot, "framer"))
        machine._sessions = {found.id: found for found in map(HeadlessSession.from_json, objects(snapshot, "sessions"))}
        running = snapshot.get("running")
        machine._running = (SessionId(running[0]), TurnId(running[1])) if running else None
        machine._resuming = snapshot.get("resuming") is True
        machine._spoke = snapshot.get("spoke") is True
        return machine

    def adopt(self, session: SessionId, turn: TurnId, *, cli_session: str, model: str) -> None:
        """Watch a run that somebody else started."""
        known = self._sessions.setdefault(session, HeadlessSession(id=session))
        known.cli_session, known.model = cli_session, model
        known.turns.append(HeadlessTurn(id=turn, state=TurnState.RUNNING))
        self._running = (session, turn)

    def _run_next(self) -> None:
        """Start the oldest waiting prompt, where no process runs."""
        for session in self._sessions.values():
            for turn in session.turns:
                if self._running is None and turn.state is TurnState.QUEUED and turn.stop is None:
                    self._run(session, turn)

    def _run(self, session: HeadlessSession, turn: HeadlessTurn) -> None:
        prompt = self._prompts.get(turn.id)
        if prompt is None:
            message = "The prompt was lost in a restart before it was sent. Send it again."
            self._end(session, turn, StopReason.ERROR, named_failure("PROMPT_LOST", message, retryable=True))
            return
        stdin, left = run_stdin(prompt)
        for attachment in left:
            message = f"{attachment.name} was not sent: this way of talking to the CLI carries text only."
            self.outbox.emit(session.id, turn.id, Notice(code="ATTACHMENT_DROPPED", message=message))
        arguments = run_arguments(cli_session=session.cli_session, mode=session.mode, model=session.model)
        self._running = (session.id, turn.id)
        self._resuming, self._spoke = bool(session.cli_session), False
        self._framer = Framer()
        turn.state = TurnState.RUNNING
        self.outbox.turn(session.id, turn.id, TurnState.RUNNING)
        env = {"GEMINI_API_KEY": session.hint} if session.hint else {}
        self.outbox.spawn(Spawn(session=session.id, turn=turn.id, argv=arguments, env=env, stdin=stdin))

    def _start_over(self, session: HeadlessSession, turn: HeadlessTurn, stderr_tail: str) -> None:
        """The conversation cannot be resumed: go on with a new one, and say so."""
        _, error = judge_exit(exit_code=INPUT_REFUSED, signal=None, stderr_tail=stderr_tail)
        if error is not None:
            self.outbox.emit(session.id, turn.id, named_failure(SESSION_LOAD_FAILED, error.message))
        message = "The CLI has lost the conversation; it goes on without memory of what was said before."
        self.outbox.emit(session.id, turn.id, Notice(code="CONVERSATION_LOST", message=message))
        session.cli_session = ""
        self._changed(session)
        self._run(session, turn)

    def _line(self, line: bytes | LongLine) -> None:
        if isinstance(line, LongLine):
            self._lost(line, LINE_TOO_LONG)
            return
        if not line.strip():
            return
        message = decode_line(line)
        if isinstance(message, Rejection):
            self._lost(line, message.value)
            return
        session, turn = self._current()
        if session is None or turn is None:
            self._lost(line, Rejection.NOT_PROTOCOL.value)
            return
        self._spoke = True
        match text(message, "type"):
            case "init":
                self._learn(session, message)
            case "message" if text(message, "role") == "user":
                pass  # the prompt comes back; `TurnStarted` has it
            case "message":
                self._lines.said(session, turn, message)
            case "tool_use":
                self._lines.called(session, turn, message)
            case "tool_result":
                self._lines.returned(session, turn, message)
            case "error":
                self._lines.complained(session, turn, message)
            case "result":
                stop, error = self._lines.judge_result(turn, message)
                self._end(session, turn, stop, error)
            case _:
                self._lost(line, UNKNOWN_METHOD)

    def _learn(self, session: HeadlessSession, message: Mapping[str, Any]) -> None:
        cli_session = text(message, "session_id")
        if cli_session and cli_session != session.cli_session:
            session.cli_session = cli_session
            self._changed(session)

    def _end(self, session: HeadlessSession, turn: HeadlessTurn, stop: StopReason, error: Error | None = None) -> None:
        if turn.stop is not None:
            return
        self._prompts.pop(turn.id, None)
        self._lines.close_calls(session, turn)
        if error is not None:
            self.outbox.emit(session.id, turn.id, error)
        turn.state, turn.stop, turn.error = TurnState.FINISHING, stop, error
        self.outbox.turn(session.id, turn.id, TurnState.FINISHING, stop)

    def _current(self) -> tuple[HeadlessSession | None, HeadlessTurn | None]:
        if self._running is None:
            return None, None
        session = self._sessions.get(self._running[0])
        return session, session.find_turn(self._running[1]) if session is not None else None

    def _changed(self, session: HeadlessSession) -> None:
        change = SessionChange(
            session=session.id,
            cli_session=session.cli_session,
            mode=session.mode,
            model=session.model,
            open=True,
        )
        self.outbox.session(change)

    def _known(self, session: SessionId) -> HeadlessSession:
        known = self._sessions.get(session)
        if known is None:
            raise ValueError(f"session {session} was not opened")
        return known

    def _lost(self, line: bytes | LongLine, why: str) -> None:
        session, turn = self._current()
        if session is None:
            session = next(iter(self._sessions.values()), None)
        self.outbox.emit(session.id if session else None, turn.id if turn else None, unparsed(line, why))
