"""What the ACP machine remembers of sessions, turns, tools and requests: mutable data with a JSON form, no rules."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandboxd.model.events import Error
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.session import StopReason, TurnState
from sandboxd.stream.codec import decode_error, encode_body
from sandboxd.stream.reading import flag, number, obj, objects, text, texts


class Phase(enum.Enum):
    """Where a session is with the CLI."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"


@dataclass(slots=True, kw_only=True)
class OpenCall:
    """A tool call without its output yet."""

    call: str
    tool: str
    tool_call_id: str
    """The CLI's id. Repeats across prompts, and where the API repeats ids."""
    turn: TurnId | None
    announced: bool
    """False where only a permission request spoke of it: a `tool_call` that follows is the same call."""

    def to_json(self) -> dict[str, Any]:
        """As the snapshot has it."""
        return {
            "call": self.call,
            "tool": self.tool,
            "id": self.tool_call_id,
            "turn": self.turn,
            "announced": self.announced,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OpenCall:
        """From the snapshot."""
        return cls(
            call=text(value, "call"),
            tool=text(value, "tool"),
            tool_call_id=text(value, "id"),
            turn=_turn_id(value),
            announced=flag(value, "announced"),
        )


@dataclass(slots=True, kw_only=True)
class OpenPermission:
    """A permission request without an answer yet."""

    permission: str
    rpc: Any
    """The agent's JSON-RPC id, as it came: an integer or a text."""
    call: str
    turn: TurnId | None
    options: dict[str, bool]
    """Option id → whether it lets the tool run."""

    def to_json(self) -> dict[str, Any]:
        """As the snapshot has it."""
        return {
            "permission": self.permission,
            "rpc": self.rpc,
            "call": self.call,
            "turn": self.turn,
            "options": dict(self.options),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OpenPermission:
        """From the snapshot."""
        return cls(
            permission=text(value, "permission"),
            rpc=value.get("rpc"),
            call=text(value, "call"),
            turn=_turn_id(value),
            options={key: bool(allows) for key, allows in obj(value, "options").items()},
        )


@dataclass(slots=True, kw_only=True)
class AcpTurn:
    """A turn that is not finished."""

    id: TurnId
    state: TurnState = TurnState.QUEUED
    cancelling: bool = False
    said: bool = False
    """Whether there was any text or tool."""
    parts: int = 0
    """Tool calls and permission requests so far: the counter behind their ids."""
    stop: StopReason | None = None
    error: Error | None = None

    def to_json(self) -> dict[str, Any]:
        """As the snapshot has it."""
        return {
            "id": self.id,
            "state": self.state.value,
            "cancelling": self.cancelling,
            "said": self.said,
            "parts": self.parts,
            "stop": self.stop.value if self.stop else None,
            "error": encode_body(self.error) if self.error else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AcpTurn:
        """From the snapshot."""
        stop = text(value, "stop")
        return cls(
            id=TurnId(text(value, "id")),
            state=TurnState(text(value, "state")),
            cancelling=flag(value, "cancelling"),
            said=flag(value, "said"),
            parts=number(value, "parts"),
            stop=StopReason(stop) if stop else None,
            error=decode_error(obj(value, "error")),
        )


@dataclass(slots=True, kw_only=True)
class Wish:
    """A mode or a model that somebody asked for."""

    mode: str = ""
    model: str = ""
    request_id: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the snapshot has it."""
        return {"mode": self.mode, "model": self.model, "request": self.request_id}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Wish:
        """From the snapshot."""
        return cls(mode=text(value, "mode"), model=text(value, "model"), request_id=text(value, "request"))


@dataclass(slots=True, kw_only=True)
class AcpSession:
    """A session in this process."""

    id: SessionId
    cli_session: str = ""
    phase: Phase = Phase.CLOSED
    mode: str = ""
    model: str = ""
    modes: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    muted: bool = False
    """History is being replayed: nothing of it is new. Ends with the next prompt that is sent."""
    replayed: bool = False
    """Some history came since this was last looked at."""
    commands_seen: bool = False
    """The commands came since the last load: the CLI sends them after the history."""
    held: list[dict[str, Any]] | None = None
    """Updates after a prompt that was sent before the history's end was seen; only a foreign client does that."""
    turns: list[AcpTurn] = field(default_factory=list)
    calls: list[OpenCall] = field(default_factory=list)
    permissions: list[OpenPermission] = field(default_factory=list)
    wishes: list[Wish] = field(default_factory=list)
    strays: int = 0
    """Tool calls and permission requests outside of turns."""

    def to_json(self) -> dict[str, Any]:
        """As the snapshot has it."""
        return {
            "id": self.id,
            "cli_session": self.cli_session,
            "phase": self.phase.value,
            "mode": self.mode,
            "model": self.model,
            "modes": list(self.modes),
            "models": list(self.models),
            "muted": self.muted,
            "replayed": self.replayed,
            "commands_seen": self.commands_seen,
            "held": None if self.held is None else list(self.held),
            "turns": [turn.to_json() for turn in self.turns],
            "calls": [call.to_json() for call in self.calls],
            "permissions": [permission.to_json() for permission in self.permissions],
            "wishes": [wish.to_json() for wish in self.wishes],
            "strays": self.strays,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AcpSession:
        """From the snapshot."""
        return cls(
            id=SessionId(text(value, "id")),
            cli_session=text(value, "cli_session"),
            phase=Phase(text(value, "phase")),
            mode=text(value, "mode"),
            model=text(value, "model"),
            modes=texts(value, "modes"),
            models=texts(value, "models"),
            muted=flag(value, "muted"),
            replayed=flag(value, "replayed"),
            commands_seen=flag(value, "commands_seen"),
            held=objects(value, "held") if isinstance(value.get("held"), list) else None,
            turns=[AcpTurn.from_json(item) for item in objects(value, "turns")],
            calls=[OpenCall.from_json(item) for item in objects(value, "calls")],
            permissions=[OpenPermission.from_json(item) for item in objects(value, "permissions")],
            wishes=[Wish.from_json(item) for item in objects(value, "wishes")],
            strays=number(value, "strays"),
        )

    def current(self) -> AcpTurn | None:
        """The turn that output belongs to: the oldest one that runs, else the newest that is finishing.

        Only another client lets prompts overlap; the CLI cancels the older one then, but not before its tool has ended
        or its permission request is answered. Until then it says nothing, and what is said is the newer one's.
        """
        busy = {call.turn for call in self.calls} | {permission.turn for permission in self.permissions}
        running = [turn for turn in self.turns if turn.state is TurnState.RUNNING]
        ended = [turn for turn in self.turns if turn.state is TurnState.FINISHING]
        for turn in running[:-1]:
            if turn.id not in busy:
                return turn
        return running[-1] if running else ended[-1] if ended else None

    def find_turn(self, turn: TurnId | None) -> AcpTurn | None:
        """The unfinished turn with this id."""
        return next((found for found in self.turns if found.id == turn), None)

    def find_permission(self, permission: str) -> OpenPermission | None:
        """The open permission request with this id."""
        return next((found for found in self.permissions if found.permission == permission), None)


class RequestKind(enum.Enum):
    """What a request to the agent was."""

    INITIALIZE = "initialize"
    AUTHENTICATE = "authenticate"
    NEW = "session/new"
    LOAD = "session/load"
    SET_MODE = "session/set_mode"
    SET_MODEL = "session/set_model"
    PROMPT = "session/prompt"
    OTHER = "other"


@dataclass(slots=True, kw_only=True)
class Pending:
    """A request to the agent that is not answered yet."""

    kind: RequestKind
    session: SessionId | None = None
    turn: TurnId | None = None
    value: str = ""
    """Mode, model, or the method of another kind."""
    request_id: str = ""
    opening: bool = False
    """Part of an opening."""

    def to_json(self) -> dict[str, Any]:
        """As the snapshot has it."""
        return {
            "kind": self.kind.value,
            "session": self.session,
            "turn": self.turn,
            "value": self.value,
            "request": self.request_id,
            "opening": self.opening,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Pending:
        """From the snapshot."""
        session = value.get("session")
        return cls(
            kind=RequestKind(text(value, "kind")),
            session=SessionId(session) if isinstance(session, str) else None,
            turn=_turn_id(value),
            value=text(value, "value"),
            request_id=text(value, "request"),
            opening=flag(value, "opening"),
        )


@dataclass(slots=True, kw_only=True)
class Opening:
    """A conversation that is being made or loaded, or waits for its turn to be."""

    session: SessionId
    cli_session: str
    cwd: str
    mode: str
    model: str
    hint: str
    resumed: bool = False

    def to_json(self) -> dict[str, Any]:
        """As the snapshot has it."""
        return {
            "session": self.session,
            "cli_session": self.cli_session,
            "cwd": self.cwd,
            "mode": self.mode,
            "model": self.model,
            "hint": self.hint,
            "resumed": self.resumed,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Opening:
        """From the snapshot."""
        return cls(
            session=SessionId(text(value, "session")),
            cli_session=text(value, "cli_session"),
            cwd=text(value, "cwd"),
            mode=text(value, "mode"),
            model=text(value, "model"),
            hint=text(value, "hint"),
            resumed=flag(value, "resumed"),
        )


def _turn_id(value: Mapping[str, Any]) -> TurnId | None:
    found = value.get("turn")
    return TurnId(found) if isinstance(found, str) else None
