"""The sweep of calls that nobody will finish: their gateway died between opening the row and settling it.

Every gateway and every `serve` may run it, also at the same time: settling is repeat-safe.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Protocol

from sandboxd.model.pricing import PriceBook
from sandboxd.model.usage import NO_TOKENS, CallError, UsageEvent, UsageState, unwatched_end
from sandboxd.monitor.ports import PriceBookStore, Settlement, UsageLedger

GATEWAY_SILENCE: Final = timedelta(seconds=30)
"""A gateway that has not beaten for this long, six beats, is taken for dead; if it was only frozen, it corrects."""
_BATCH: Final = 100


class Clock(Protocol):
    """Where the present moment comes from."""

    def now(self) -> datetime:
        """Return the present moment, aware, UTC."""
        ...


class OrphanSweep:
    """Settles orphaned calls at the larger of what was seen and what was reserved."""

    def __init__(self, *, ledger: UsageLedger, prices: PriceBookStore, clock: Clock) -> None:
        self._ledger = ledger
        self._prices = prices
        self._clock = clock

    async def run(self, *, silent_for: timedelta = GATEWAY_SILENCE) -> int:
        """Settle one batch of orphaned calls.

        Returns:
            How many rows changed.

        Raises:
            DatabaseUnavailableError: The ledger does not answer.
        """
        orphans = await self._ledger.orphaned_calls(silent_for=silent_for, limit=_BATCH)
        if not orphans:
            return 0
        prices = await self._prices.load()
        changed = 0
        for orphan in orphans:
            changed += await self._ledger.settle_call(orphan.id, self._settlement(orphan, prices))
        return changed

    def _settlement(self, orphan: UsageEvent, prices: PriceBook) -> Settlement:
        seen = orphan.tokens if orphan.tokens != NO_TOKENS else None
        tokens = unwatched_end(seen, reserved=orphan.reserved)
        priced = prices.price(tokens, model=orphan.model, model_version=orphan.model_version, at=orphan.start_time)
        return Settlement(
            state=UsageState.ESTIMATED,
            tokens=tokens,
            model_version=orphan.model_version,
            http_status=orphan.http_status,
            finish_reason=None,
            block_reason=None,
            cost=priced.cost if priced else None,
            price_id=priced.price_id if priced else None,
            first_byte_time=orphan.first_byte_time,
            end_time=self._clock.now(),
            error_reason=CallError.GATEWAY_LOST,
        )
