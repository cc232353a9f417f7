"""A usage event: one call of the model API, as one row of the ledger; and the rules by which its tokens are counted.

Pure. The gateway reads what the API reports with `read_usage`, the ledger keeps `UsageEvent`s, and the two rules for a
call whose end nobody saw (`watched_break` and `unwatched_end`) are here so that gateway and sweep cannot disagree.

How a call's tokens are decided:

1. The answer ended (its body ended as HTTP says, an error status included): the last `usageMetadata` counts, none is
   zero, unless the answer could not be read: then it is as in rule 2. State SETTLED. Figures in a stream are
   cumulative: the last ones replace the earlier, they are never added, and a class that is absent is 0.
2. The gateway watched the answer break (the CLI went away, the API cut the connection, a limit was reached): the last
   `usageMetadata` seen counts; where none was seen although the request was sent, the estimate of the prompt counts,
   because the API had it to read. State ESTIMATED. The call is cancelled upstream at once, so no output is assumed.
3. Nobody watched (the gateway died): the larger of the last persisted `usageMetadata` and the whole reservation,
   class by class. State ESTIMATED, error reason GATEWAY_LOST; the gateway's own late report may still correct it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NewType

from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, SessionId, TurnId
from sandboxd.model.money import Money

UsageEventId = NewType("UsageEventId", str)
"""Id of one call, made by the gateway: `use-` and 26 ULID characters, so that ids sort by the start of the call."""
GatewayId = NewType("GatewayId", str)
"""Id of one life of a gateway process, new at each start: it tells whose open calls are orphans."""

MAX_TOKENS: Final = 1_000_000_000
"""Largest count that is believed for one class of one call; a hostile or broken upstream cannot overflow a sum."""
MAX_WORD: Final = 64
"""Longest finish or block reason that is kept, in characters; the API's own are below 40."""
MAX_MODEL_NAME: Final = 128
"""Longest model name that is kept, in characters."""
DEFAULT_OUTPUT_CLAMP: Final = 8192
"""Output tokens that are reserved at most for one call: the default output limit of the older Gemini models. A request
may ask for 65,536 and usually uses a few hundred, so reserving what it asks for would block a client's other calls."""
_BYTES_PER_TOKEN: Final = 4
"""A token of English text or code is about four bytes; JSON around it makes the estimate an over-estimate."""


class UsageState(enum.Enum):
    """How far a row of the ledger is."""

    OPEN = "OPEN"
    """The call was let through and has not ended."""
    SETTLED = "SETTLED"
    """The answer ended and the tokens are the API's own."""
    ESTIMATED = "ESTIMATED"
    """The end was not seen; the tokens follow rule 2 or 3 of this module."""


class ModelMethod(enum.Enum):
    """The methods of the model API that the gateway lets through, in the API's words."""

    GENERATE_CONTENT = "generateContent"
    STREAM_GENERATE_CONTENT = "streamGenerateContent"
    COUNT_TOKENS = "countTokens"


class CallError(enum.Enum):
    """Why a call failed or why its end was not seen. Closed, so that it can be a metric's label."""

    UPSTREAM_STATUS = "UPSTREAM_STATUS"
    """The API answered with an error status; `http_status` has it."""
    UPSTREAM_UNREACHABLE = "UPSTREAM_UNREACHABLE"
    """No connection could be made; nothing was sent."""
    UPSTREAM_TIMEOUT = "UPSTREAM_TIMEOUT"
    """The API was silent for longer than its deadline."""
    UPSTREAM_CUT = "UPSTREAM_CUT"
    """The API closed the connection before its answer was whole."""
    UPSTREAM_MALFORMED = "UPSTREAM_MALFORMED"
    """The answer ended and a part of it was not JSON; the tokens are the last ones that could be read."""
    UPSTREAM_REDIRECT = "UPSTREAM_REDIRECT"
    """The API answered with a redirect, which is never followed."""
    RESPONSE_TOO_LARGE = "RESPONSE_TOO_LARGE"
    """The answer passed the gateway's limit and was cut."""
    CLIENT_GONE = "CLIENT_GONE"
    """The CLI closed its connection; the call was cancelled upstream."""
    GATEWAY_STOPPED = "GATEWAY_STOPPED"
    """The gateway was shut down while the call ran and ended it itself."""
    GATEWAY_FAILED = "GATEWAY_FAILED"
    """The gateway had a fault of its own in the middle of the call."""
    GATEWAY_LOST = "GATEWAY_LOST"
    """The gateway died; the sweep settled the row."""
    NOT_FORWARDED = "NOT_FORWARDED"
    """The row may exist, but the gateway sent nothing: it could not learn in time whether the row was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens of one call, or a sum of many, by class."""

    prompt: int = 0
    """Tokens of the request, the cached ones included."""
    cached: int = 0
    """The part of `prompt` that came from the API's cache."""
    output: int = 0
    """Visible tokens of the answer."""
    thoughts: int = 0
    """Tokens of the model's thinking, on top of `output`."""
    tool_use: int = 0
    """Prompt tokens that the API's own tools added (web search and the like), on top of `prompt`."""
    total: int = 0
    """What the API calls the total; prompt + output + thoughts + tool_use where it says nothing."""

    def __add__(self, other: TokenCounts) -> TokenCounts:
        """Add class by class."""
        return TokenCounts(
            prompt=self.prompt + other.prompt,
            cached=self.cached + other.cached,
            output=self.output + other.output,
            thoughts=self.thoughts + other.thoughts,
            tool_use=self.tool_use + other.tool_use,
            total=self.total + other.total,
        )


NO_TOKENS: Final = TokenCounts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What a call may use at most, as far as it can be told before: the base of budgets and of rules 2 and 3."""

    prompt_tokens: int
    output_tokens: int

    @property
    def tokens(self) -> int:
        """Prompt and output together."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """One row of the ledger: one request that was let through to the model API, whatever became of it."""

    id: UsageEventId
    gateway: GatewayId
    client: ClientId
    freelancer: FreelancerId
    sandbox: SandboxId
    incarnation: IncarnationId
    session: SessionId | None
    """Session that the CLI's placeholder key named, where it is one of this sandbox; None for a call outside any."""
    turn: TurnId | None
    """Turn that was open in that session when the call began."""
    method: ModelMethod
    model: str
    """Model that the request named."""
    model_version: str | None
    """Model that the API says answered."""
    state: UsageState
    http_status: int | None
    """Status of the API's answer; None while there is none."""
    finish_reason: str | None
    """The API's word for why it stopped, for example `STOP`, `MAX_TOKENS`, `SAFETY`."""
    block_reason: str | None
    """The API's word for why it refused the prompt, for example `PROHIBITED_CONTENT`."""
    tokens: TokenCounts
    cost: Money | None
    """None where no price is known, and while the call is open. Never zero for want of a price."""
    price_id: str | None
    """The price that was applied; None where none is known."""
    reserved: Reservation
    start_time: datetime
    first_byte_time: datetime | None
    """When the first byte of the answer's body came."""
    end_time: datetime | None
    error_reason: CallError | None

    @property
    def unpriced(self) -> bool:
        """True where the call ended with tokens and no price was known: somebody has to add the price."""
        return self.state is not UsageState.OPEN and self.cost is None and self.tokens.total > 0


def reserve(*, request_bytes: int, max_output_tokens: int | None, clamp: int = DEFAULT_OUTPUT_CLAMP) -> Reservation:
    """Estimate a generating call before it is made: bytes / 4 for the prompt, and the smaller of wish and clamp.

    Args:
        request_bytes: Size of the request's body.
        max_output_tokens: `generationConfig.maxOutputTokens`; None where the request does not limit its output.
        clamp: Most output tokens to reserve.
    """
    wished = clamp if max_output_tokens is None else max(0, min(max_output_tokens, clamp))
    return Reservation(prompt_tokens=min(request_bytes // _BYTES_PER_TOKEN, MAX_TOKENS), output_tokens=wished)


NOTHING_RESERVED: Final = Reservation(prompt_tokens=0, output_tokens=0)
"""For `countTokens`, which is free."""


def read_usage(metadata: object) -> TokenCounts | None:
    """Read the API's `usageMetadata`, believing nothing: wrong types are 0, and counts lie in 0 … `MAX_TOKENS`.

    Returns:
        None where there is nothing to read (not an object, or an empty one), so that the figures before it stand.
    """
    if not isinstance(metadata, Mapping) or not metadata:
        return None
    prompt = _count(metadata.get("promptTokenCount"))
    output = _count(metadata.get("candidatesTokenCount"))
    thoughts = _count(metadata.get("thoughtsTokenCount"))
    tool_use = _count(metadata.get("toolUsePromptTokenCount"))
    total = _count(metadata.get("totalTokenCount"))
    return TokenCounts(
        prompt=prompt,
        cached=min(_count(metadata.get("cachedContentTokenCount")), prompt),
        output=output,
        thoughts=thoughts,
        tool_use=tool_use,
        total=total or prompt + output + thoughts + tool_use,
    )


def watched_break(last: TokenCounts | None, *, reserved: Reservation, sent: bool) -> TokenCounts:
    """Tokens of a call that the gateway saw break: rule 2.

    Args:
        last: The last usage that the API reported, where it did.
        reserved: The call's reservation.
        sent: False where the request never reached the API (no connection, or it had answered with an error).
    """
    if last is not None:
        return last
    return TokenCounts(prompt=reserved.prompt_tokens, total=reserved.prompt_tokens) if sent else NO_TOKENS


def unwatched_end(last: TokenCounts | None, *, reserved: Reservation) -> TokenCounts:
    """Tokens of a call whose gateway died: rule 3."""
    seen = last or NO_TOKENS
    prompt = max(seen.prompt, reserved.prompt_tokens)
    output = max(seen.output, reserved.output_tokens - seen.thoughts)
    parts = prompt + output + seen.thoughts + seen.tool_use
    return TokenCounts(
        prompt=prompt,
        cached=seen.cached,
        output=output,
        thoughts=seen.thoughts,
        tool_use=seen.tool_use,
        total=max(seen.total, parts),
    )


def _count(value: object) -> int:
    """Read one count. The API's JSON may carry 64-bit integers as strings."""
    if isinstance(value, str):
        if not value.isascii() or not value.isdigit() or len(value) > 19:
            return 0
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return min(max(int(value), 0), MAX_TOKENS)
