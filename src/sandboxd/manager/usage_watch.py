"""Live usage: what is settled as it is settled, and totals that follow it.

Everything is read from the ledger, a page at a time, when a hint says that there is something or after some seconds
without one. A slow reader only slows itself: nothing is kept for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

import structlog

from sandboxd.model.errors import UnavailableError
from sandboxd.model.sources import Clock
from sandboxd.model.usage import UsageEvent
from sandboxd.monitor.ports import SaidNotice, UsageCursor, UsageFilter, UsageLedger, UsageSummaryRow
from sandboxd.stream.ports import Wakeups

PAGE: Final = 200
"""Calls of one read."""
LOOK_SECONDS: Final = 5.0
"""How often to look without a hint."""
REST_SECONDS: Final = 0.25
"""How long to let news gather between two reads."""
TOTALS_SECONDS: Final = 1.0
"""How often totals are made at most."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageNews:
    """One piece of news, with the cursor to go on after it."""

    cursor: UsageCursor
    body: UsageEvent | SaidNotice | UsageSummaryRow


class UsageWatch:
    """Watches the ledger."""

    def __init__(
        self,
        *,
        ledger: UsageLedger,
        wakeups: Wakeups,
        clock: Clock,
        rest: float = REST_SECONDS,
        totals_every: float = TOTALS_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._wakeups = wakeups
        self._clock = clock
        self._rest = rest
        self._totals_every = totals_every

    async def watch(self, where: UsageFilter, *, after: UsageCursor | None) -> AsyncIterator[UsageNews]:
        """Yield totals, then news for ever.

        Args:
            where: Which calls. The totals begin at its `start_from`, or with the present month.
            after: Go on after this; None for what comes from now on.

        Raises:
            InvalidRequestError: The cursor is not one of this database.
            UnavailableError: The database does not answer.
        """
        now = self._clock.now()
        month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        summed = replace(where, start_from=where.start_from or month)
        hints = self._wakeups.listen("usage")  # before the first read: what comes in between wakes us
        cursor = after if after is not None else (await self._ledger.changes(where, after=None, limit=1)).cursor
        due, dirty = self._clock.monotonic(), True
        while True:
            page = await self._ledger.changes(where, after=cursor, limit=PAGE)
            for event, place in page.events:
                yield UsageNews(cursor=place, body=event)
            for number, notice in enumerate(page.notices, start=1):
                # Whoever goes on in the middle of them gets them again, and misses none.
                last = number == len(page.notices)
                place = page.cursor if last else replace(page.cursor, notices=cursor.notices)
                yield UsageNews(cursor=place, body=notice)
            cursor, dirty = page.cursor, dirty or bool(page.events)
            if page.more:
                continue
            if dirty and self._clock.monotonic() >= due:
                totals = (await self._ledger.summarise(summed, by=(), limit=1)).total
                yield UsageNews(cursor=cursor, body=totals)
                due, dirty = self._clock.monotonic() + self._totals_every, False
            await self._wait(hints, timeout=max(0.0, due - self._clock.monotonic()) if dirty else LOOK_SECONDS)

    async def _wait(self, hints: AsyncIterator[str], *, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await anext(hints)
        except TimeoutError:
            return
        except (UnavailableError, StopAsyncIteration):
            log.warning("usage.watch_without_hints")
            await asyncio.sleep(timeout)
            return
        await asyncio.sleep(self._rest)
