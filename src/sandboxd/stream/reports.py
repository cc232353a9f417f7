"""What a process of the CLI reports to the owner of its conversation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Bytes that the CLI wrote."""

    process: str
    data: bytes
    received: float = 0.0
    """When it was read from the agent, on the monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The CLI has ended, and all its output was taken; or its sandbox's life is over."""

    process: str
    exit_code: int | None
    signal: int | None
    stderr_tail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Somebody else owns the conversation now."""


Report = Output | Exited | Lost
