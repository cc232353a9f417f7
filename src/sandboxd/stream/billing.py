"""What a turn cost: asked from the ledger when the CLI says that the turn has ended.

The gateway settles a call before the CLI sees its end, so the first look normally finds everything. A call that the CLI
abandoned (cancel, crash) is settled a moment later: it is waited for, up to a bound, and then said to be missing.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import datetime, timedelta
from typing import Final

import structlog

from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import SandboxId, TurnId
from sandboxd.model.sources import Clock
from sandboxd.stream.dialect import TurnBill
from sandboxd.stream.ports import TurnLedger, TurnUsage

log = structlog.get_logger(__name__)

PATIENCE: Final = timedelta(seconds=2)
"""How long a turn's end waits for calls that are still open."""
LOOK_SECONDS: Final = 0.25
"""How often it looks by itself, should a hint be lost."""


class TurnBills:
    """Collects the ledger rows of turns that are finishing."""

    def __init__(self, ledger: TurnLedger, clock: Clock, *, patience: timedelta = PATIENCE) -> None:
        self._ledger = ledger
        self._clock = clock
        self._patience = patience
        self._hints: defaultdict[SandboxId, asyncio.Event] = defaultdict(asyncio.Event)

    def hint(self, sandbox: SandboxId) -> None:
        """The gateway wrote something for this sandbox."""
        if sandbox in self._hints:
            self._hints[sandbox].set()

    async def collect(self, sandbox: SandboxId, turn: TurnId, *, started: datetime) -> TurnBill:
        """The turn's bill; incomplete where calls stay open or the ledger does not answer within the patience."""
        deadline = self._clock.monotonic() + self._patience.total_seconds()
        hint = self._hints[sandbox]
        usage: TurnUsage | None = None
        try:
            while True:
                hint.clear()
                try:
                    async with asyncio.timeout(max(0.05, deadline - self._clock.monotonic())):
                        usage = await self._ledger.turn_usage(turn)
                except (SandboxdError, TimeoutError) as error:
                    log.warning("turn.ledger_unanswered", sandbox=sandbox, turn=turn, error=str(error))
                if usage is not None and usage.open_calls == 0:
                    break
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    break
                try:
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await hint.wait()
                except TimeoutError:
                    pass
        finally:
            self._hints.pop(sandbox, None)
        duration = max(0, round((self._clock.now() - started).total_seconds() * 1000))
        if usage is None:
            return TurnBill(duration_ms=duration, complete=False)
        return TurnBill(
            usage=tuple(usage.calls),
            finish_reason=usage.finish_reason,
            block_reason=usage.block_reason,
            notices=tuple(usage.notices),
            duration_ms=duration,
            complete=usage.open_calls == 0,
        )
