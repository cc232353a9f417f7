"""`session/update` notifications to events. An update that is new to us becomes an `Unparsed` event with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sandboxd.model.events import CommandsAvailable, EventBody, ModeChanged, Notice, Text, Thought
from sandboxd.stream.acp.content import names
from sandboxd.stream.acp.state import AcpSession, RequestKind
from sandboxd.stream.acp.tools import Tools
from sandboxd.stream.acp.wire import Wire
from sandboxd.stream.cutting import pieces, shorten
from sandboxd.stream.limits import MAX_MESSAGE_BYTES, MAX_NAME_BYTES, MAX_TEXT_BYTES
from sandboxd.stream.outbox import Outbox
from sandboxd.stream.reading import obj, objects, text
from sandboxd.stream.unparsed import UNKNOWN_CONTENT, UNKNOWN_UPDATE, unparsed

_THOUGHT = re.compile(r"\A\*\*(?P<subject>[^\n]*?)\*\*(?:\n|\Z)(?P<body>.*)\Z", re.DOTALL)
_MODE_UPDATE = re.compile(r"\[MODE_UPDATE\] (?P<mode>\w{1,50})")
_MAX_HELD = 10_000
"""Updates kept back while it is unclear whether they are history; then they are taken for new."""


class Updates:
    """Turns what the agent reports into events of the session."""

    def __init__(self, outbox: Outbox, wire: Wire, tools: Tools) -> None:
        self._outbox = outbox
        self._wire = wire
        self._tools = tools

    def take(self, session: AcpSession, update: dict[str, Any], line: bytes) -> None:
        """One update, with the line it came in."""
        kind = text(update, "sessionUpdate")
        if kind == "available_commands_update":
            # The CLI sends the commands after the history; what was held back until here was history.
            session.held = None
            session.commands_seen = True
            self._commands(session, update)
        elif session.muted or kind == "user_message_chunk":
            session.replayed = True
            if session.held is not None:
                session.held = []
        elif session.held is not None and len(session.held) < _MAX_HELD:
            session.held.append(update)
        else:
            self.release(session)
            self._new(session, update, line)

    def release(self, session: AcpSession) -> None:
        """What was held back was no history: make events of it."""
        held, session.held = session.held, None
        for update in held or ():
            self._new(session, update, b"")

    def _new(self, session: AcpSession, update: dict[str, Any], line: bytes) -> None:
        match text(update, "sessionUpdate"):
            case "agent_message_chunk":
                self._message(session, update, line)
            case "agent_thought_chunk":
                self._thought(session, update, line)
            case "tool_call":
                self._tools.called(session, update)
            case "tool_call_update":
                self._tools.updated(session, update)
            case "current_mode_update":
                self._mode(session, text(update, "currentModeId"))
            case "plan":
                self._emit(session, Notice(code="PLAN", message=_plan(update)))
            case _:
                self._emit(session, unparsed(line or repr(update).encode(), UNKNOWN_UPDATE))

    def _message(self, session: AcpSession, update: Mapping[str, Any], line: bytes) -> None:
        said = _text_of(update)
        if said is None:
            self._emit(session, unparsed(line or repr(update).encode(), UNKNOWN_CONTENT))
            return
        mode = _MODE_UPDATE.fullmatch(said)
        if mode and (not session.modes or mode["mode"] in session.modes):
            self._mode(session, mode["mode"])
            return
        turn = session.current()
        if turn is not None and said.strip():
            turn.said = True
        for piece in pieces(said, MAX_TEXT_BYTES):
            self._emit(session, Text(text=piece))

    def _thought(self, session: AcpSession, update: Mapping[str, Any], line: bytes) -> None:
        said = _text_of(update)
        if said is None:
            self._emit(session, unparsed(line or repr(update).encode(), UNKNOWN_CONTENT))
            return
        headed = _THOUGHT.match(said)
        subject = shorten(headed["subject"], MAX_NAME_BYTES) if headed else ""
        for piece in pieces(headed["body"] if headed else said, MAX_TEXT_BYTES):
            self._emit(session, Thought(subject=subject, text=piece))

    def _mode(self, session: AcpSession, mode: str) -> None:
        """The mode is another one now; where somebody asked for it, the answer to that request says so."""
        if not mode or self._wire.awaits(RequestKind.SET_MODE, session.id, mode):
            return
        session.mode = shorten(mode, MAX_NAME_BYTES)
        self._emit(session, ModeChanged(mode=session.mode))

    def _commands(self, session: AcpSession, update: Mapping[str, Any]) -> None:
        commands = names(command.get("name") for command in objects(update, "availableCommands"))
        self._outbox.emit(session.id, None, CommandsAvailable(commands=commands))

    def _emit(self, session: AcpSession, body: EventBody) -> None:
        turn = session.current()
        self._outbox.emit(session.id, turn.id if turn else None, body)


def _text_of(update: Mapping[str, Any]) -> str | None:
    block = obj(update, "content")
    said = block.get("text")
    return said if text(block, "type") == "text" and isinstance(said, str) else None


def _plan(update: Mapping[str, Any]) -> str:
    entries = [f"[{text(entry, 'status')}] {text(entry, 'content')}" for entry in objects(update, "entries")]
    return shorten("\n".join(entries), MAX_MESSAGE_BYTES)
