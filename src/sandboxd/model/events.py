"""Agent events: what a session's log holds and a stream shows. One frozen dataclass a kind, all pure data.

`EventBody` is the union of the kinds. The processor makes bodies; the journal gives them a session, a sequence number
and a moment (`SessionEvent`). Limits on sizes are the processor's (`stream/limits.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.session import StopReason


class ToolKind(enum.Enum):
    """What a tool does, in ACP's words."""

    READ = "read"
    EDIT = "edit"
    DELETE = "delete"
    MOVE = "move"
    SEARCH = "search"
    EXECUTE = "execute"
    THINK = "think"
    FETCH = "fetch"
    SWITCH_MODE = "switch_mode"
    OTHER = "other"


class ToolStatus(enum.Enum):
    """How a tool call ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"
    """A person said no; the CLI reports nothing then, the processor closes the call itself."""
    CANCELLED = "cancelled"
    """The turn ended before the tool reported anything."""


class PermissionOptionKind(enum.Enum):
    """What an option of a permission request means."""

    ALLOW_ONCE = "allow_once"
    ALLOW_ALWAYS = "allow_always"
    REJECT_ONCE = "reject_once"
    REJECT_ALWAYS = "reject_always"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """A change to one file, as the tool reports it."""

    path: str
    old_text: str | None
    """None where the file is new."""
    new_text: str
    kind: str = ""
    """`add`, `modify` or `delete`; empty where the CLI does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionOption:
    """One answer that a person can give."""

    id: str
    label: str
    kind: PermissionOptionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentInfo:
    """An attachment as the log keeps it: everything but the bytes."""

    name: str
    mime_type: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """The session was made. First event of every log."""

    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waking:
    """The sandbox is being made ready for use; an idle or stopped one takes a moment."""

    from_state: str
    """State of the sandbox before, for example `HIBERNATED`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReady:
    """The CLI has the conversation open: made new, or loaded again after its process was started anew."""

    resumed: bool
    mode: str
    modes: Sequence[str]
    model: str
    models: Sequence[str]
    cli_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted:
    """A prompt was accepted and is durable; it will be sent to the CLI once."""

    request_id: str
    number: int
    text: str
    attachments: Sequence[AttachmentInfo] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A piece of the answer; pieces are concatenated."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """A piece of the model's thinking."""

    subject: str
    """Heading of the thought, empty where it has none."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """The CLI starts a tool, or would like to (then a permission request follows)."""

    call: str
    """Id of the call, unique in the session."""
    tool: str
    """Tool name, for example `run_shell_command`."""
    title: str
    kind: ToolKind
    locations: Sequence[str] = ()
    """Paths that the call touches, as the CLI names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutput:
    """A tool ended. Exactly one for each `ToolCall`."""

    call: str
    tool: str
    status: ToolStatus
    text: str = ""
    diffs: Sequence[Diff] = ()
    truncated: bool = False
    """True where text or diffs were cut to the limit of one event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionRequest:
    """The CLI waits for a person's answer before it runs a tool."""

    permission: str
    """Id to answer with, unique in the session."""
    call: str
    tool: str
    title: str
    options: Sequence[PermissionOption]
    text: str = ""
    diffs: Sequence[Diff] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionAnswered:
    """A permission request is closed: by a person, or because its turn was cancelled."""

    permission: str
    option: str
    """Id of the chosen option; empty where it was cancelled."""
    request_id: str = ""
    """Request id of the answer; empty where nobody answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChanged:
    """The session's approval mode is another one now."""

    mode: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChanged:
    """The session's model is another one now."""

    model: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandsAvailable:
    """Slash commands that the CLI understands in this session."""

    commands: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    """Somebody asked to cancel the open turn; `TurnCompleted` follows."""

    request_id: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One model call of the turn, from the ledger: authoritative."""

    usage_event: str
    """Id of the ledger row."""
    model: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    thoughts_tokens: int
    tool_use_tokens: int
    total_tokens: int
    cost_micros: int | None
    """Millionths of a unit of `currency`; None where the model has no price."""
    currency: str = ""
    http_status: int | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCompleted:
    """The turn ended. Last event of every turn."""

    stop_reason: StopReason
    calls: int = 0
    """Model calls of the turn, failed ones and retries included."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    thoughts_tokens: int = 0
    tool_use_tokens: int = 0
    total_tokens: int = 0
    cost_micros: int | None = None
    currency: str = ""
    duration_ms: int = 0
    usage_complete: bool = True
    """False where a model call of the turn was still open when the turn ended; the ledger has it later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something a person may want to know and need not act on."""

    code: str
    """Constant word, for example `SESSION_RESUMED`, `BUDGET_LOW`, `CLI_RESTARTED`."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """Something went wrong in the session. Data, not a broken stream: the session goes on unless it says otherwise."""

    reason: str
    """Constant word, for example `MODEL_RATE_LIMITED`, `MODEL_QUOTA_SPENT`, `CLI_EXITED`."""
    message: str
    http_status: int | None = None
    """Status of the model API, where the error came from there."""
    retryable: bool = False
    request_id: str = ""
    """The request that failed, where one did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unparsed:
    """Bytes of the CLI that the processor could not understand, kept as they came."""

    data: bytes
    """The bytes, whole up to the limit of one event."""
    size: int
    """How many bytes there were."""
    why: str
    """Constant word: `NOT_UTF8`, `NOT_JSON`, `NOT_PROTOCOL`, `LINE_TOO_LONG`, `TOO_DEEP`, `UNKNOWN_SESSION`, …"""
    sha256: str = ""
    """Digest of all bytes, where `data` does not hold them all."""


class TextState(enum.Enum):
    """What became of an event's text after its turn, by the client's policy."""

    KEPT = "KEPT"
    """As it was written."""
    REDACTED = "REDACTED"
    """What looks like a secret or personal data was replaced."""
    ERASED = "ERASED"
    """The text is gone; that the event happened, and when, is kept."""


EventBody = (
    SessionOpened
    | Waking
    | SessionReady
    | TurnStarted
    | Text
    | Thought
    | ToolCall
    | ToolOutput
    | PermissionRequest
    | PermissionAnswered
    | ModeChanged
    | ModelChanged
    | CommandsAvailable
    | CancelRequested
    | Usage
    | TurnCompleted
    | Notice
    | Error
    | Unparsed
)
"""Everything that a session's log can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEvent:
    """One entry of a session's log: immutable, and numbered without gaps from 1."""

    session: SessionId
    sequence: int
    turn: TurnId | None
    event_time: datetime
    body: EventBody
    text_state: TextState = TextState.KEPT
