"""Watches runs that somebody else started, from their stream-json alone: every `init` begins a run, and a turn."""

from __future__ import annotations

from sandboxd.model.events import SessionReady, TurnStarted
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.stream.cutting import shorten
from sandboxd.stream.decoding import decode_line
from sandboxd.stream.headless.machine import HeadlessDialect
from sandboxd.stream.limits import MAX_NAME_BYTES, MAX_OUTPUT_BYTES
from sandboxd.stream.reading import text

TYPES = frozenset({"init", "message", "tool_use", "tool_result", "error", "result"})
"""What stream-json lines are."""
UNNAMED = SessionId("stream-json")
"""Session of a recording that begins in the middle of a run."""


class HeadlessObserver:
    """Feeds a machine with runs that it did not ask for."""

    def __init__(self, machine: HeadlessDialect) -> None:
        self._machine = machine
        self._number = 0
        self._session = UNNAMED
        self._open = False
        self._started = False

    def line(self, line: bytes) -> None:
        """One line of output, without its line feed."""
        message = decode_line(line)
        if isinstance(message, dict) and text(message, "type") in TYPES:
            kind = text(message, "type")
            if kind == "init" or not self._open:
                self._begin(shorten(text(message, "session_id"), MAX_NAME_BYTES), text(message, "model"))
            if kind == "message" and text(message, "role") == "user":
                self._start(text(message, "content"))
            elif kind != "init":
                self._start("")
        self._machine.feed(line + b"\n")

    def end(self) -> None:
        """The recording is over."""
        if self._open:
            self._start("")
        self._machine.exited(exit_code=None, signal=None)
        self._open = False

    def _begin(self, session: str, model: str) -> None:
        if self._open:
            self.end()
        self._number += 1
        self._session = SessionId(session) if session else self._session
        self._open, self._started = True, False
        model = shorten(model, MAX_NAME_BYTES)
        turn = TurnId(f"turn-{self._number}")
        self._machine.adopt(self._session, turn, cli_session=session, model=model)
        models = (model,) if model else ()
        ready = SessionReady(resumed=False, mode="", modes=(), model=model, models=models)
        self._machine.outbox.emit(self._session, None, ready)

    def _start(self, prompt: str) -> None:
        if not self._started:
            self._started = True
            said = shorten(prompt, MAX_OUTPUT_BYTES)
            turn = TurnId(f"turn-{self._number}")
            self._machine.outbox.emit(self._session, turn, TurnStarted(request_id="", number=self._number, text=said))
