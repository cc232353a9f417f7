"""Answers permission questions: by a rule, or by the person at the keyboard."""

from __future__ import annotations

import sys
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

from typing_extensions import override

from sandboxd.ctl.conversation import Asker
from sandboxd.ctl.permissions import ALLOW, REJECT, first_of, understand
from sandboxd.v1 import stream_pb2

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output


class AlwaysYes(Asker):
    """Allows everything, each time anew."""

    @override
    async def ask(self, request: stream_pb2.PermissionRequest) -> str | None:
        return first_of(request, ALLOW)


class AlwaysNo(Asker):
    """Refuses everything."""

    @override
    async def ask(self, request: stream_pb2.PermissionRequest) -> str | None:
        return first_of(request, REJECT)


class AskPerson(Asker):
    """Asks at the terminal; the view has shown the question."""

    def __init__(self, *, tty: Input | None = None, out: Output | None = None) -> None:
        self._tty = tty
        self._out = out

    @override
    async def ask(self, request: stream_pb2.PermissionRequest) -> str | None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.input import create_input
        from prompt_toolkit.input.typeahead import clear_typeahead
        from prompt_toolkit.output import create_output
        from prompt_toolkit.patch_stdout import patch_stdout

        tty = self._tty or create_input(always_prefer_tty=True)
        out = self._out or create_output(always_prefer_tty=True)
        # What was typed before the question was on the screen is no answer to it.
        clear_typeahead(tty)
        with suppress(termios.error, OSError, NotImplementedError):
            termios.tcflush(tty.fileno(), termios.TCIFLUSH)
        session: PromptSession[str] = PromptSession(input=tty, output=out)
        question = f"Answer 1-{len(request.options)}, y or n (Ctrl-C cancels the turn): "
        while True:
            try:
                with patch_stdout(raw=True):
                    said = await session.prompt_async(question, enable_history_search=False)
            except KeyboardInterrupt:
                return None
            except EOFError:
                return first_of(request, REJECT)
            option = understand(said, request)
            if option is not None:
                return option


def has_terminal() -> bool:
    """Tell whether there is a person who can be asked."""
    return sys.stderr.isatty() and (sys.stdin.isatty() or sys.stdout.isatty())
