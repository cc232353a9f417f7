"""The port behind which both ways to talk to the CLI live: `gemini --acp`, and `gemini -p … -o stream-json`.

A dialect is a machine: mutable, but pure. It does no I/O, reads no clock and never raises because of what the CLI says.
The driver (`stream/conversation.py`) does the I/O. One machine stands for one process of the CLI (headless: for a chain
of them); a new process gets a new machine, and `open` for each session that is used again.

How to drive it: call methods, then `take` what they produced, then `snapshot`. Events, `stdin`, `consumed` and the
snapshot of one `take` belong into one transaction; after it, write `stdin` to the process. After a crash `restore` the
machine from the snapshot and attach the output at `consumed`. All ids that the machine makes are deterministic, so that
the same bytes are written again.

What the driver emits itself: `SessionOpened`, `Waking`, `TurnStarted` (before it calls `prompt`), notices of its own.
Everything else comes from the machine, `CancelRequested`, `Usage` and `TurnCompleted` included.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sandboxd.model.events import Error, EventBody, Notice, Usage
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.session import PromptInput, StopReason, TurnState


class DialectName(enum.Enum):
    """The dialects there are; the value is what the journal stores."""

    ACP = "acp"
    HEADLESS = "headless"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """An event, and where it belongs."""

    session: SessionId | None
    """None only while the machine knows no session at all: bytes before the first `open`, or of a foreign session."""
    turn: TurnId | None
    body: EventBody


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnChange:
    """A turn is in another state now."""

    session: SessionId
    turn: TurnId
    state: TurnState
    """RUNNING when the prompt was written to the CLI, then FINISHING, then COMPLETED or FAILED by `finish`."""
    stop_reason: StopReason | None = None
    """Set from FINISHING on; `finish` may still change it (refusal, max_tokens)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionChange:
    """What the machine knows of a session after the step; only sessions where something changed are listed."""

    session: SessionId
    cli_session: str
    """The CLI's own id; empty while it is not known, or when the conversation was lost."""
    mode: str
    """Present approval mode; empty while unknown."""
    model: str
    """Present model; empty while unknown."""
    open: bool
    """True while the CLI has it open. False: call `open` before the next prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """The dialect needs a new process (headless only). Its output starts at offset 0 again."""

    session: SessionId
    turn: TurnId
    argv: Sequence[str]
    """Arguments for the CLI, without the program itself."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment in addition to that of `launch`."""
    stdin: bytes = b""
    """To be written once, then stdin is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What was produced since the last `take`."""

    events: Sequence[Emitted] = ()
    stdin: bytes = b""
    """Whole lines for the process, in order."""
    turns: Sequence[TurnChange] = ()
    sessions: Sequence[SessionChange] = ()
    spawn: Spawn | None = None
    interrupt: bool = False
    """True: send SIGTERM to the process (headless only; its cancel)."""

    def __bool__(self) -> bool:
        """Tell whether anything was produced at all."""
        return bool(self.events or self.stdin or self.turns or self.sessions or self.spawn or self.interrupt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finishing:
    """A turn that the CLI has ended; the ledger is asked, then `finish` ends it for the client."""

    session: SessionId
    turn: TurnId
    stop_reason: StopReason
    error: Error | None = None
    """The error that ended it; its event is already out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnBill:
    """What the ledger says about a turn."""

    usage: Sequence[Usage] = ()
    """In the order of the calls."""
    finish_reason: str = ""
    """Of the last model call, as the API says it: `STOP`, `SAFETY`, `MAX_TOKENS` … Empty where not known."""
    block_reason: str = ""
    """`promptFeedback.blockReason` of the last model call; empty where the prompt was not blocked."""
    notices: Sequence[Notice] = ()
    """About budgets: a threshold that was passed, a call that was refused."""
    duration_ms: int = 0
    complete: bool = True
    """False where calls of the turn were still open."""


class Dialect(Protocol):
    """One CLI process (headless: a chain of them), as a pure machine.

    Commands for a session that is not open raise ValueError: that is a bug of the driver. What a person got wrong
    raises an error of `model/errors.py`, and changes nothing.
    """

    @property
    def name(self) -> DialectName:
        """Which dialect it is."""
        ...

    @property
    def consumed(self) -> int:
        """Absolute output offset up to which everything is in events and snapshot: continue from here after a crash.

        A line boundary, or a place inside a line that is being discarded. Bytes after it may already have been fed.
        """
        ...

    @property
    def finishing(self) -> Sequence[Finishing]:
        """Turns that wait for `finish`, oldest first."""
        ...

    def start(self) -> None:
        """Greet the process. Once, first."""
        ...

    def open(self, session: SessionId, *, cli_session: str, cwd: str, mode: str, model: str, hint: str) -> None:
        """Make a conversation (`cli_session` empty) or load it; `SessionReady` or `Error` follows.

        Openings are done one after the other. Does nothing while the session is open or opening.

        Args:
            session: Our id.
            cli_session: The CLI's id from an earlier process, or empty.
            cwd: The workspace, as the sandbox sees it.
            mode: Approval mode to set; empty leaves the CLI's.
            model: Model to set; empty leaves the CLI's.
            hint: Placeholder key that attributes the session's model calls.
        """
        ...

    def is_open(self, session: SessionId) -> bool:
        """Tell whether the session is open, or opening: false means that `open` is needed before `prompt`."""
        ...

    def open_turn(self, session: SessionId) -> TurnId | None:
        """The session's turn that is not finished; None where none is."""
        ...

    def permissions(self, session: SessionId) -> Mapping[str, Sequence[str]]:
        """Open permission requests, oldest first: id → ids of the options."""
        ...

    def prompt(self, session: SessionId, turn: TurnId, prompt: PromptInput) -> None:
        """Start a turn: written at once, or when the session is open. Raises TurnInProgressError."""
        ...

    def answer(self, session: SessionId, *, permission: str, option: str, request_id: str = "") -> None:
        """Answer a permission request; an empty option refuses it and cancels the turn.

        Raises:
            PermissionNotOpenError: No such request is open.
            InvalidRequestError: It has no such option.
        """
        ...

    def cancel(self, session: SessionId, *, request_id: str = "", reason: str = "") -> bool:
        """Cancel the open turn; false where there was none to cancel (or it ended already, or is being cancelled)."""
        ...

    def set_mode(self, session: SessionId, mode: str, *, request_id: str = "") -> None:
        """Set the approval mode; `ModeChanged` or `Error` follows, at once or when the session is open."""
        ...

    def set_model(self, session: SessionId, model: str, *, request_id: str = "") -> None:
        """Set the model; `ModelChanged` or `Error` follows, at once or when the session is open."""
        ...

    def close(self, session: SessionId) -> None:
        """Forget a session. An open turn is cancelled and forgotten; later output of the session is dropped."""
        ...

    def feed(self, data: bytes) -> None:
        """Take output of the process, cut anywhere. Never raises."""
        ...

    def exited(self, *, exit_code: int | None, signal: int | None, stderr_tail: str = "") -> None:
        """The process has ended, and all its output was fed: turns that it was given go FINISHING as interrupted.

        A turn that it was not given (QUEUED) is forgotten: give it to the next process.
        """
        ...

    def finish(self, turn: TurnId, bill: TurnBill) -> None:
        """End a turn that is finishing: `Usage` events and `TurnCompleted`. Does nothing for another turn."""
        ...

    def take(self) -> Step:
        """What was produced since the last call."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """State as JSON, versioned. Take first: what was not taken is not in it.

        Prompts that wait for their session are named, not held: `restore` gets them from the driver.
        """
        ...
