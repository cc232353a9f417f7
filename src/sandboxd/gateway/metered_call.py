"""One call while it runs, and the settlement that follows from how it ended (the rules are in `model/usage.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sandboxd.gateway.answer import AnswerReader
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.pricing import PriceBook
from sandboxd.model.usage import NO_TOKENS, CallError, TokenCounts, UsageState, watched_break
from sandboxd.monitor.ports import CallProgress, CallStart, Settlement

_NOTHING_SENT: Final = frozenset({CallError.UPSTREAM_UNREACHABLE, CallError.NOT_FORWARDED})


@dataclass(slots=True, kw_only=True)
class MeteredCall:
    """What is known of a call so far. Changed by the one task that forwards it."""

    start: CallStart
    session: SessionId | None = None
    turn: TurnId | None = None
    traceparent: str = ""
    """What the turn keeps of its caller's trace."""
    reader: AnswerReader = field(default_factory=AnswerReader)
    http_status: int | None = None
    first_byte_time: datetime | None = None
    ended: bool = False
    """True once the answer's body ended as HTTP says."""
    error: CallError | None = None

    def progress(self) -> CallProgress | None:
        """Return what a crash should not lose; None while the API has reported nothing."""
        if self.reader.usage is None:
            return None
        return CallProgress(
            tokens=self.reader.usage, model_version=self.reader.model_version, first_byte_time=self.first_byte_time
        )

    def settlement(self, prices: PriceBook, *, at: datetime) -> Settlement:
        """Decide how the call is settled."""
        state, tokens, error = self._outcome()
        began = self.start.start_time
        # A clock that was set back meanwhile must not make a call end before it began.
        first = self.first_byte_time and max(self.first_byte_time, began)
        priced = prices.price(
            tokens, model=self.start.model, model_version=self.reader.model_version, at=self.start.start_time
        )
        return Settlement(
            state=state,
            tokens=tokens,
            model_version=self.reader.model_version,
            http_status=self.http_status,
            finish_reason=self.reader.finish_reason,
            block_reason=self.reader.block_reason,
            cost=priced.cost if priced else None,
            price_id=priced.price_id if priced else None,
            first_byte_time=first,
            end_time=max(at, first or began),
            error_reason=error,
        )

    def _outcome(self) -> tuple[UsageState, TokenCounts, CallError | None]:
        usage = self.reader.usage
        refused = self.http_status is not None and self.http_status >= 400
        if self.error in _NOTHING_SENT:
            return UsageState.SETTLED, NO_TOKENS, self.error
        if refused or (self.ended and self.reader.failed):
            return UsageState.SETTLED, usage or NO_TOKENS, self.error or CallError.UPSTREAM_STATUS
        malformed = CallError.UPSTREAM_MALFORMED if self.reader.malformed else None
        if self.ended and malformed and usage is None:
            # It ended well and nothing of it could be read: what the API has counted is unknown, not nothing.
            return UsageState.ESTIMATED, watched_break(None, reserved=self.start.reserved, sent=True), malformed
        if self.ended:
            return UsageState.SETTLED, usage or NO_TOKENS, self.error or malformed
        if self.reader.finish_reason is not None and usage is not None:
            # The answer's last part was here; only the end of the connection was not seen. The CLI may leave now.
            left = self.error in {CallError.CLIENT_GONE, CallError.GATEWAY_STOPPED, CallError.GATEWAY_FAILED}
            return UsageState.SETTLED, usage, None if left else self.error
        return UsageState.ESTIMATED, watched_break(usage, reserved=self.start.reserved, sent=True), self.error
