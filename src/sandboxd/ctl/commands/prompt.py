"""`sandboxctl prompt`: one turn, streamed, then an exit code."""

from __future__ import annotations

import asyncio
import enum
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from sandboxd.ctl.asking import AlwaysNo, AlwaysYes, AskPerson, has_terminal
from sandboxd.ctl.client import SessionStream, attachment
from sandboxd.ctl.conversation import Asker, Conversation
from sandboxd.ctl.exits import Exit, of_stop_reason
from sandboxd.ctl.interrupts import on_interrupt
from sandboxd.ctl.names import bare, find_sandbox, find_session, sandbox_of
from sandboxd.ctl.render import EventRenderer
from sandboxd.ctl.shell import Shell, UsageError
from sandboxd.ctl.views import JsonView, TextView, link_notes
from sandboxd.v1 import stream_pb2


class Permissions(enum.Enum):
    """Who answers permission questions."""

    ASK = "ask"
    YES = "yes"
    DENY = "deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """What to say, where and how."""

    sandbox: str
    text: str
    session: str = ""
    """As a person names it; empty makes a new one."""
    attach: Sequence[Path] = ()
    permissions: Permissions | None = None
    """None asks where there is a terminal, and refuses elsewhere."""
    title: str = ""
    mode: str = ""
    model: str = ""
    thoughts: bool = True


async def prompt(shell: Shell, options: PromptOptions) -> Exit:
    """Run one turn and show its events."""
    attachments = read_attachments(options.attach)
    sandbox, session = await find_place(shell, options.sandbox, options.session)
    asker = _asker(shell, options.permissions)
    renderer = None if shell.json else EventRenderer(shell.out, thoughts=options.thoughts)
    stream = shell.client.stream(
        sandbox,
        session=session,
        after_sequence=-1 if session else 0,
        title=options.title,
        mode=options.mode,
        model=options.model,
        on_link=link_notes(shell.err, renderer),
    )
    view = JsonView() if renderer is None else TextView(renderer, is_mine=bool)
    conversation = Conversation(stream, view=view, asker=asker)
    async with stream, conversation.followed():
        interrupts = _Interrupts(shell, conversation, renderer)
        try:
            with on_interrupt(interrupts.press):
                if session:
                    adjust(stream, mode=options.mode, model=options.model)
                turn = await conversation.prompt(options.text, attachments)
                done = await conversation.end_of(turn)
        except asyncio.CancelledError:
            shell.say("Left; the turn goes on without you. Follow it with:")
            shell.say(f"  sandboxctl history {conversation.session} --follow")
            raise
    if renderer is not None:
        shell.say(f"  session {bare(conversation.session)}", "dim")
    if conversation.refused and options.permissions is None and isinstance(asker, AlwaysNo):
        words = "There was no terminal to ask at, so permissions were refused. --yes allows them."
        shell.err.print(Text(words, style="yellow"))
    return exit_code(done, interrupted=interrupts.pressed > 0, refused=conversation.refused)


def adjust(stream: SessionStream, *, mode: str, model: str) -> None:
    """Ask for another mode or model in a session that exists; a new one is opened with them."""
    if mode:
        stream.set_mode(mode)
    if model:
        stream.set_model(model)


def exit_code(done: stream_pb2.TurnCompleted, *, interrupted: bool, refused: bool) -> Exit:
    """Return what the end of a turn means to a script."""
    if done.stop_reason == stream_pb2.STOP_REASON_CANCELLED and interrupted:
        return Exit.INTERRUPTED
    if refused and done.stop_reason in (stream_pb2.STOP_REASON_CANCELLED, stream_pb2.STOP_REASON_END_TURN):
        return Exit.REFUSED
    return of_stop_reason(stream_pb2.StopReason.Name(done.stop_reason))


async def find_place(shell: Shell, sandbox: str, session: str) -> tuple[str, str]:
    """Return the resource names of the sandbox and the session that are meant."""
    if session.startswith("sandboxes/") and not sandbox:
        name = await find_session(shell.client, session)
        return sandbox_of(name), name
    place = await find_sandbox(shell.client, sandbox)
    return place, await find_session(shell.client, session, sandbox=place) if session else ""


def read_attachments(paths: Sequence[Path]) -> list[stream_pb2.Attachment]:
    """Read the files that go with a prompt.

    Raises:
        UsageError: One cannot be read, or is too large.
    """
    read = list[stream_pb2.Attachment]()
    for path in paths:
        try:
            read.append(attachment(path.expanduser()))
        except OSError as error:
            raise UsageError(f"The attachment {path} cannot be read: {error.strerror}.") from error
        if not read[-1].data:
            raise UsageError(f"The attachment {path} is empty.")
        if len(read[-1].data) > 7 * 1024 * 1024:
            raise UsageError(f"The attachment {path} is larger than 7 MiB, which is the limit for one.")
    if sum(len(each.data) for each in read) > 14 * 1024 * 1024:
        raise UsageError("The attachments are larger than 14 MiB together, which is the limit.")
    return read


def read_text(words: Sequence[str]) -> str:
    """Return the prompt's text: the words, or what comes on stdin for `-` alone.

    Raises:
        UsageError: There is no text.
    """
    text = sys.stdin.read() if [*words] == ["-"] else " ".join(words)
    if not text.strip():
        raise UsageError("There is no text to send. Give it as arguments, or on stdin with `-`.")
    return text


def _asker(shell: Shell, wanted: Permissions | None) -> Asker:
    if wanted is None:
        wanted = Permissions.ASK if has_terminal() and not shell.json else Permissions.DENY
    match wanted:
        case Permissions.YES:
            return AlwaysYes()
        case Permissions.DENY:
            return AlwaysNo()
        case Permissions.ASK:
            if not has_terminal():
                raise UsageError("--ask needs a terminal. Without one, decide with --yes or --deny.")
            return AskPerson()


class _Interrupts:
    """The first Ctrl-C cancels the turn, the second leaves."""

    def __init__(self, shell: Shell, conversation: Conversation, renderer: EventRenderer | None) -> None:
        self.pressed = 0
        self._shell = shell
        self._conversation = conversation
        self._renderer = renderer
        self._task = asyncio.current_task()

    def press(self) -> None:
        self.pressed += 1
        if self.pressed > 1 and self._task is not None:
            self._task.cancel()
            return
        if self._renderer is not None:
            self._renderer.end_line()
        self._shell.say("Cancelling the turn; Ctrl-C again leaves without waiting.", "yellow")
        self._conversation.cancel()
