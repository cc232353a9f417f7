"""Errands: what is asked of the owner of a conversation, on the replica that owns it, wherever the asker is.

The caller was checked where it called; an errand says for whom it is done and is not checked again. Each can be
repeated without harm: an order by its request id, the others by what they ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from sandboxd.model.caller import Caller
from sandboxd.model.ids import RequestId, SandboxId, SessionId
from sandboxd.model.session import PromptInput


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTurn:
    """Start a turn."""

    prompt: PromptInput


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPermission:
    """Answer a permission request."""

    permission: str
    option: str
    """Empty refuses and ends the turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTurn:
    """Cancel the open turn; none is success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMode:
    """Set the approval mode."""

    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetModel:
    """Set the model."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetSession:
    """Take a session that is being deleted out of its conversation; an open turn is refused."""


Deed: TypeAlias = StartTurn | AnswerPermission | CancelTurn | SetMode | SetModel | ForgetSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A caller's command: done once for its request id, by whichever owner comes to it."""

    caller: Caller
    sandbox: SandboxId
    session: SessionId
    """One that the caller may see."""
    request_id: RequestId
    body_hash: bytes
    deed: Deed
    traceparent: str = ""
    """Where the caller's trace is; empty where nothing is traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Somebody wants to use a session: have the CLI up with the session open."""

    caller: Caller
    sandbox: SandboxId
    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Vanished:
    """A client went away that wanted its turn cancelled then."""

    sandbox: SandboxId
    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """End the CLI; open turns end as interrupted, durably. Nothing open is success."""

    sandbox: SandboxId
    reason: str
    timeout: timedelta
    only_idle: bool = False
    """End no turn: refuse where one is open."""


Errand: TypeAlias = Order | Wish | Vanished | Close
