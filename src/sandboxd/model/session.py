"""A session (one conversation with the CLI), its turns, and what a person may send into it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SandboxId, SessionId, TurnId

MAX_PROMPT_TEXT_BYTES = 1 << 20
"""Text of one prompt, UTF-8: 1 MiB. A model with a million tokens reads about 4 MB; a prompt is typed or pasted."""
MAX_ATTACHMENTS = 16
"""Attachments of one prompt."""
MAX_ATTACHMENT_BYTES = 7 << 20
"""One attachment: 7 MiB, so that its base64 form in the CLI's request stays below the API's 20 MB with a neighbour."""
MAX_PROMPT_BYTES = 14 << 20
"""All attachments of one prompt together: 14 MiB, below the API's limit of 20 MB for inline data once base64-coded."""


class TurnState(enum.Enum):
    """Where a turn is."""

    QUEUED = "QUEUED"
    """Accepted and durable; the CLI does not have it yet."""
    RUNNING = "RUNNING"
    FINISHING = "FINISHING"
    """The CLI has answered; the ledger rows of the turn are being collected."""
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class StopReason(enum.Enum):
    """Why a turn ended."""

    END_TURN = "end_turn"
    CANCELLED = "cancelled"
    MAX_TOKENS = "max_tokens"
    MAX_TURN_REQUESTS = "max_turn_requests"
    REFUSAL = "refusal"
    """The model gave no answer: blocked, or stopped for safety. Known from the ledger, the CLI calls it end_turn."""
    ERROR = "error"
    """The API or the CLI reported an error; the error event before it says which."""
    INTERRUPTED = "interrupted"
    """The CLI or its sandbox ended in the middle; the next prompt resumes the conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """An image or a file that goes with a prompt."""

    name: str
    """File name for people and the model, without a folder."""
    mime_type: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptInput:
    """What a person sends: a text, with attachments."""

    text: str
    attachments: Sequence[Attachment] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One conversation in a sandbox. Several can live side by side; each has its own event log."""

    id: SessionId
    sandbox: SandboxId
    client: ClientId
    freelancer: FreelancerId
    title: str = ""
    """First words of the first prompt, unless the caller gave a title."""
    mode: str = "default"
    model: str = ""
    cli_session: str = ""
    """The CLI's own id of the conversation (a UUID); empty until the CLI made it."""
    head_sequence: int = 0
    """Sequence number of the newest event."""
    turns: int = 0
    """How many prompts were accepted."""
    open_turn: TurnId | None = None
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One prompt with all that follows until the result."""

    id: TurnId
    session: SessionId
    number: int
    """1 for the first turn of the session."""
    request_id: RequestId
    state: TurnState
    prompt: PromptInput
    stop_reason: StopReason | None = None
    start_time: datetime
    end_time: datetime | None = None
    traceparent: str = ""
    """Trace context of the call that started it (`model/trace.py`); empty where that was not traced."""
