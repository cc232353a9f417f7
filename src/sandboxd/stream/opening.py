"""What a caller gives to open a session, and what it gets for a command: the words between the edge and the hub."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandboxd.model.ids import RequestId, SandboxId, SessionId, TurnId


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a caller asks for when it opens a stream."""

    sandbox: SandboxId
    session: SessionId | None = None
    """The session to continue; None makes a new one."""
    after_sequence: int = 0
    """Events after this one are sent; -1 sends only what comes from now on."""
    watch_only: bool = False
    """The call gives no commands, and opening wakes nothing."""
    cancel_on_disconnect: bool = False
    """Cancel the open turn when the call ends without a half-close."""
    title: str = ""
    """Of a new session."""
    mode: str = ""
    """Approval mode of a new session; empty takes the sandbox's."""
    model: str = ""
    """Model of a new session; empty takes the sandbox's."""
    request_id: RequestId = field(default=RequestId(""))
    """Makes the opening of a new session idempotent; empty for an existing one."""
    body_hash: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A command was taken and is durable."""

    repeated: bool
    """True where it had been taken before, and nothing was done now."""
    turn: TurnId | None = None
    """Turn that a prompt started."""
