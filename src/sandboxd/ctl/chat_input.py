"""The keyboard of `sandboxctl chat`: a multi-line line editor with history, and a quiet terminal during turns."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout

COMMANDS = ("/help", "/mode", "/model", "/attach", "/session", "/quit")


class TypingInterruptedError(Exception):
    """Something happened while the person was typing; what they had typed is kept for the next line."""


class ChatInput:
    """Reads prompts. Enter sends; Alt-Enter, or Esc and then Enter, begins a new line."""

    def __init__(self, history_file: Path | None) -> None:
        self._draft = ""
        self._interrupted = False
        self._session: PromptSession[str] = PromptSession(
            history=_history(history_file),
            key_bindings=_bindings(),
            multiline=True,
            prompt_continuation=lambda width, _line, _soft: "… ".rjust(width),
            completer=WordCompleter([*COMMANDS], sentence=True),
            complete_while_typing=Condition(self._is_command),
            reserve_space_for_menu=0,
        )

    async def read(self, prompt: str) -> str:
        """Return the next prompt.

        Raises:
            TypingInterruptedError: `interrupt` was called.
            KeyboardInterrupt: Ctrl-C on an empty line.
            EOFError: Ctrl-D on an empty line.
        """
        if self._interrupted:
            self._interrupted = False
            raise TypingInterruptedError
        draft, self._draft = self._draft, ""
        self._session.app.erase_when_done = False
        with patch_stdout(raw=True):
            return await self._session.prompt_async(FormattedText([("ansicyan bold", prompt)]), default=draft)

    def interrupt(self) -> None:
        """Make `read` give way, or the next one that begins, and keep what was typed."""
        application = self._session.app
        if not application.is_running:
            self._interrupted = True
        elif application.future is not None and not application.future.done():
            self._draft = self._session.default_buffer.text
            application.erase_when_done = True  # it comes back below what is about to be shown
            application.exit(exception=TypingInterruptedError())

    def _is_command(self) -> bool:
        return self._session.default_buffer.text.startswith("/")


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Show nothing of what is typed while a turn runs; it is kept for the next prompt. Ctrl-C still works."""
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):
        yield
        return
    quiet = termios.tcgetattr(descriptor)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-c")
    def _clear_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return bindings
