"""`sandboxctl chat`: a conversation at the keyboard."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandboxd.ctl.asking import AskPerson
from sandboxd.ctl.chat_input import ChatInput, TypingInterruptedError, quiet_keyboard
from sandboxd.ctl.client import ApiError, Client, SessionStream
from sandboxd.ctl.commands.prompt import adjust, find_place, read_attachments
from sandboxd.ctl.conversation import Conversation
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.interrupts import on_interrupt
from sandboxd.ctl.names import bare
from sandboxd.ctl.render import EventRenderer
from sandboxd.ctl.shell import Shell, UsageError
from sandboxd.ctl.views import TextView, link_notes
from sandboxd.v1 import stream_pb2

PROMPT = "> "
TWICE_SECONDS = 3.0
"""Two Ctrl-C within this time leave."""
REPLAYED = 500
"""Newest events in which the beginning of the last turn is looked for."""
HELP = """\
Enter sends. Alt-Enter (or Esc, then Enter) begins a new line.
Ctrl-C cancels the turn that is running, or clears the line. Ctrl-C twice on an empty line, or Ctrl-D, leaves.
  /attach FILE …   send files or images with the next prompt
  /mode [MODE]     show or set the approval mode: default, autoEdit, yolo, plan
  /model [MODEL]   show or set the model
  /session         show the session's name and how to come back
  /quit            leave; a turn that is running goes on
Everything else that begins with / is sent to Gemini CLI."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Where to talk, and how."""

    sandbox: str
    session: str = ""
    """As a person names it; empty makes a new one."""
    title: str = ""
    mode: str = ""
    model: str = ""
    thoughts: bool = True


async def chat(shell: Shell, options: ChatOptions) -> Exit:
    """Talk until the person leaves."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("chat needs a terminal. For one turn without one, use: sandboxctl prompt")
    sandbox, session = await find_place(shell, options.sandbox, options.session)
    renderer = EventRenderer(shell.out, thoughts=options.thoughts)
    stream = shell.client.stream(
        sandbox,
        session=session,
        after_sequence=await _where_to_begin(shell.client, session) if session else 0,
        title=options.title,
        mode=options.mode,
        model=options.model,
        on_link=link_notes(shell.out, renderer),
    )
    view = TextView(renderer)
    conversation = Conversation(stream, view=view, asker=AskPerson())
    view.is_mine = conversation.is_mine
    async with stream, conversation.followed():
        shell.say(f"session {bare(conversation.session)} · /help tells the keys · Ctrl-D leaves", "dim")
        if session:
            adjust(stream, mode=options.mode, model=options.model)
        talk = _Talk(shell, conversation, renderer, ChatInput(history_file()))
        with on_interrupt(talk.press):
            await talk.go_on(stream)
    shell.say(f"Come back with: sandboxctl chat {bare(sandbox)} --session {bare(conversation.session)}", "dim")
    return Exit.OK


def history_file() -> Path | None:
    """Return where prompts are remembered; `SANDBOXCTL_HISTORY=` (empty) remembers nothing."""
    named = os.environ.get("SANDBOXCTL_HISTORY")
    if named is not None:
        return Path(named).expanduser() if named else None
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "sandboxctl" / "history"


async def _where_to_begin(client: Client, session: str) -> int:
    """Return the event before the last turn: what a person who comes back wants to see."""
    head = (await client.session(session)).head_sequence
    first = max(0, head - REPLAYED)
    begin = head
    async for event in client.history(session, after_sequence=first):
        if event.WhichOneof("event") == "turn_started":
            begin = event.sequence - 1
    return begin


class _Talk:
    """The loop of prompt and turn."""

    def __init__(self, shell: Shell, conversation: Conversation, renderer: EventRenderer, keyboard: ChatInput) -> None:
        self._shell = shell
        self._conversation = conversation
        self._renderer = renderer
        self._keyboard = keyboard
        self._attached: list[stream_pb2.Attachment] = []
        self._leaving = False
        self._task = asyncio.current_task()
        self._in_turn = False
        self._pressed = 0
        """How often Ctrl-C was pressed in this turn."""
        self._pressed_at = 0.0
        """When it was pressed outside of turns."""

    async def go_on(self, stream: SessionStream) -> None:
        while not self._leaving:
            if self._conversation.open_turn:
                await self._follow(self._conversation.open_turn)
                continue
            try:
                text = await self._read()
            except TypingInterruptedError:
                continue
            except KeyboardInterrupt:
                self._press_at_rest()
                continue
            except EOFError:
                return
            if text.strip():
                await self._take(text, stream)

    async def _read(self) -> str:
        """Read a line; give way when somebody else starts a turn, or the service is gone for good."""
        watching = asyncio.create_task(self._conversation.turn_opened(), name="chat-watch")
        watching.add_done_callback(lambda task: None if task.cancelled() else self._keyboard.interrupt())
        try:
            return await self._keyboard.read(PROMPT)
        except TypingInterruptedError:
            if watching.done():
                await watching  # raises what ended the stream
            raise
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _take(self, text: str, stream: SessionStream) -> None:
        word, _, rest = text.strip().partition(" ")
        match word:
            case "/help" | "/?":
                self._shell.say(HELP)
            case "/quit" | "/exit":
                self._leaving = True
            case "/session":
                self._shell.say(self._conversation.session)
            case "/mode":
                self._set("mode", rest.strip(), stream)
            case "/model":
                self._set("model", rest.strip(), stream)
            case "/attach":
                self._attach(rest)
            case _:
                await self._prompt(text)

    def _set(self, what: str, value: str, stream: SessionStream) -> None:
        talk = self._conversation
        present, choices = (talk.mode, talk.modes) if what == "mode" else (talk.model, talk.models)
        if not value:
            self._shell.say(f"{what} is {present or 'known after the next prompt'}")
            if choices:
                self._shell.say(f"/{what} sets it: {', '.join(choices)}", "dim")
        elif what == "mode":
            stream.set_mode(value)
        else:
            stream.set_model(value)

    def _attach(self, rest: str) -> None:
        try:
            self._attached += read_attachments([Path(each) for each in shlex.split(rest)])
        except (UsageError, ValueError) as error:
            self._shell.say(f"✗ {error}", "red")
        names = ", ".join(each.file_name for each in self._attached) or "nothing; say /attach FILE"
        self._shell.say(f"goes with the next prompt: {names}", "dim")

    async def _prompt(self, text: str) -> None:
        with self._turn():
            try:
                turn = await self._conversation.prompt(text, self._attached)
            except ApiError as error:
                if error.code.name == "UNAVAILABLE":
                    raise
                return  # the view has shown the refusal
            self._attached = []
            await self._conversation.end_of(turn)
        self._renderer.end_line()

    async def _follow(self, turn: str) -> None:
        with self._turn():
            await self._conversation.end_of(turn)
        self._renderer.end_line()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self._in_turn, self._pressed = True, 0
        try:
            with quiet_keyboard():
                yield
        finally:
            self._in_turn = False

    def press(self) -> None:
        """Take a Ctrl-C: cancel the turn that runs, not the program; a turn that does not end is left by the third."""
        if not self._in_turn:
            self._press_at_rest()
            return
        self._pressed += 1
        if self._pressed == 1:
            self._renderer.note("Ctrl-C: cancelling the turn …", "yellow")
            self._conversation.cancel()
        elif self._pressed == 2:
            self._renderer.note("Still cancelling. Ctrl-C again leaves; the turn goes on without you.", "yellow")
        elif self._task is not None:
            self._task.cancel()

    def _press_at_rest(self) -> None:
        now = time.monotonic()
        if now - self._pressed_at <= TWICE_SECONDS:
            self._leaving = True
            self._keyboard.interrupt()
        else:
            self._shell.say("Ctrl-C again, or Ctrl-D, leaves.", "dim")
        self._pressed_at = now
