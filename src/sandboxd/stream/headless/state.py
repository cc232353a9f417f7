"""What the headless machine remembers. Mutable data with a JSON form; no rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandboxd.model.events import Error
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.session import StopReason, TurnState
from sandboxd.stream.codec import decode_error, encode_body
from sandboxd.stream.reading import flag, number, obj, objects, text


@dataclass(slots=True, kw_only=True)
class HeadlessTurn:
    """A turn that is not finished."""

    id: TurnId
    state: TurnState = TurnState.QUEUED
    cancelling: bool = False
    said: bool = False
    parts: int = 0
    calls: list[list[str]] = field(default_factory=list)
    """Open tool calls: our id, the CLI's id, the tool."""
    remark: Error | None = None
    """Last error that the CLI reported on its way; a result without an error of its own means this one."""
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
            "calls": [list(call) for call in self.calls],
            "remark": encode_body(self.remark) if self.remark else None,
            "stop": self.stop.value if self.stop else None,
            "error": encode_body(self.error) if self.error else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> HeadlessTurn:
        """From the snapshot."""
        stop = text(value, "stop")
        return cls(
            id=TurnId(text(value, "id")),
            state=TurnState(text(value, "state")),
            cancelling=flag(value, "cancelling"),
            said=flag(value, "said"),
            parts=number(value, "parts"),
            calls=[[str(part) for part in call] for call in value.get("calls", ())],
            remark=decode_error(obj(value, "remark")),
            stop=StopReason(stop) if stop else None,
            error=decode_error(obj(value, "error")),
        )


@dataclass(slots=True, kw_only=True)
class HeadlessSession:
    """A session; it is open as soon as it is named, for there is no process behind it."""

    id: SessionId
    cli_session: str = ""
    mode: str = ""
    model: str = ""
    hint: str = ""
    turns: list[HeadlessTurn] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As the snapshot has it."""
        return {
            "id": self.id,
            "cli_session": self.cli_session,
            "mode": self.mode,
            "model": self.model,
            "hint": self.hint,
            "turns": [turn.to_json() for turn in self.turns],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> HeadlessSession:
        """From the snapshot."""
        return cls(
            id=SessionId(text(value, "id")),
            cli_session=text(value, "cli_session"),
            mode=text(value, "mode"),
            model=text(value, "model"),
            hint=text(value, "hint"),
            turns=[HeadlessTurn.from_json(turn) for turn in objects(value, "turns")],
        )

    def find_turn(self, turn: TurnId | None) -> HeadlessTurn | None:
        """The unfinished turn with this id."""
        return next((found for found in self.turns if found.id == turn), None)
