"""All that one gateway says to the ledger: rows opened before calls, progress while they run, settlements after.

The meter owns every task that it starts, so that a call whose CLI is gone is settled all the same. What the ledger
cannot take goes to the spool and is tried again; while the ledger cannot take a new row, no new call is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.gateway.metered_call import MeteredCall
from sandboxd.gateway.metrics import GatewayMetrics
from sandboxd.gateway.ports import Clock
from sandboxd.gateway.refusals import RefusalReason, refuse
from sandboxd.gateway.spent import SpentBudgets
from sandboxd.gateway.spool import SettlementSpool
from sandboxd.model.errors import SandboxdError, UnavailableError, UsageEventNotFoundError
from sandboxd.model.pricing import PriceBook
from sandboxd.model.usage import CallError, GatewayId, TokenCounts, UsageEventId
from sandboxd.monitor.ports import CallRefusal, CallRefused, CallStart, PriceBookStore, Settlement, UsageLedger
from sandboxd.monitor.sweep import OrphanSweep

_log = structlog.get_logger()
_PRICES_FRESH: Final = 5.0
"""Seconds after which the price book is read again."""
_WITHDRAWN_LIMIT: Final = 10_000
_WITHDRAWN_TRIED: Final = 120.0
"""Seconds for which a row that may have been written by a lost COMMIT is looked for."""
_BEATS_UNTIL_DEAF: Final = 4
"""After this many beats without an answer of the ledger the gateway is not ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterTiming:
    """Deadlines and intervals, in seconds."""

    beat: float
    dead_after: float
    open: float
    settle: float


class Meter:
    """The ledger's side of one gateway."""

    def __init__(
        self,
        *,
        gateway: GatewayId,
        ledger: UsageLedger,
        prices: PriceBookStore,
        spool: SettlementSpool,
        sweep: OrphanSweep,
        clock: Clock,
        timing: MeterTiming,
        metrics: GatewayMetrics,
    ) -> None:
        self.gateway: Final = gateway
        self._ledger = ledger
        self._store = prices
        self._spool = spool
        self._sweep = sweep
        self._clock = clock
        self._timing = timing
        self._metrics = metrics
        self._prices: PriceBook | None = None
        self._prices_read = 0.0
        self._spent = SpentBudgets(monotonic=time.monotonic)
        self._beaten: float | None = None
        self._open: dict[UsageEventId, MeteredCall] = {}
        self._persisted: dict[UsageEventId, TokenCounts] = {}
        self._withdrawn: dict[UsageEventId, tuple[Settlement, float]] = {}
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """True while the ledger answers and the spool has room."""
        fresh = self._beaten is not None and time.monotonic() - self._beaten < self._timing.beat * _BEATS_UNTIL_DEAF
        return fresh and not self._spool.full

    def show(self) -> None:
        """Bring the metrics of what waits up to date."""
        self._metrics.spooled.set(len(self._spool))
        oldest = self._spool.oldest
        waited = (self._clock.now() - oldest).total_seconds() if oldest is not None else 0.0
        self._metrics.oldest_spooled.set(max(0.0, waited))
        self._metrics.ledger_silence.set(0.0 if self._beaten is None else time.monotonic() - self._beaten)

    @property
    def open_calls(self) -> int:
        """How many calls run."""
        return len(self._open)

    @property
    def spooled(self) -> int:
        """How many settlements wait for the ledger."""
        return len(self._spool)

    async def open(self, call: MeteredCall) -> None:
        """Write the call's row, or refuse the call.

        Raises:
            RefusedError: The incarnation has ended, a budget is spent, or the ledger does not answer.
        """
        if self._spool.full:
            raise refuse(RefusalReason.LEDGER_UNAVAILABLE)
        if (known := self._spent.find(call.start)) is not None:
            raise refuse(_REFUSALS[known.reason], message=known.message)
        began = time.perf_counter()
        asked = False
        try:
            async with asyncio.timeout(self._timing.open):
                await self._introduce()
                call.start = self._priced(call.start)
                asked = True
                answer = await self._ledger.open_call(call.start)
        except (SandboxdError, TimeoutError) as error:
            self._withdraw(call, asked=asked)
            self._metrics.ledger_failures.labels("open").inc()
            _log.warning("gateway.ledger_open_failed", usage_event=call.start.id, error=type(error).__name__)
            raise refuse(RefusalReason.LEDGER_UNAVAILABLE) from None
        except BaseException:
            self._withdraw(call, asked=asked)  # the CLI left, or a bug: nothing was sent, whatever the ledger has
            raise
        finally:
            self._metrics.ledger_seconds.labels("open").observe(time.perf_counter() - began)
        if isinstance(answer, CallRefused):
            if answer.reason in _REMEMBERED:
                self._spent.remember(call.start, answer)
            raise refuse(_REFUSALS[answer.reason], message=answer.message)
        call.session, call.turn, call.traceparent = answer.session, answer.turn, answer.traceparent
        self._open[call.start.id] = call
        self._metrics.open_calls.set(len(self._open))

    def settle(self, call: MeteredCall) -> asyncio.Task[None]:
        """Settle a call in a task of the meter's own; the caller may await it (shielded) or leave."""
        self._open.pop(call.start.id, None)
        self._persisted.pop(call.start.id, None)
        self._metrics.open_calls.set(len(self._open))
        settlement = call.settlement(self._prices or PriceBook(), at=self._clock.now())
        task = asyncio.create_task(self._settle(call, settlement), name=f"settle {call.start.id}")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    async def run(self) -> None:
        """Beat, persist progress, drain the spool and sweep orphans, until cancelled."""
        await self._spool.load()
        while True:
            await self._guarded("beat", self._beat)
            await self._guarded("progress", self._persist_progress)
            await self._guarded("settle", self._drain)
            await asyncio.sleep(self._timing.beat)

    async def close(self) -> None:
        """Wait until every settlement is in the ledger or in the spool."""
        while self._settling:
            await asyncio.wait([*self._settling])
        with contextlib.suppress(SandboxdError, TimeoutError):
            await self._drain()

    async def _settle(self, call: MeteredCall, settlement: Settlement) -> None:
        event = call.start.id
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._timing.settle):
                await self._ledger.settle_call(event, settlement)
        except UsageEventNotFoundError:
            _log.error("gateway.usage_event_vanished", usage_event=event)
        except Exception as error:  # noqa: BLE001 - a task guard: whatever the ledger's fault is, the usage is kept
            self._metrics.ledger_failures.labels("settle").inc()
            _log.warning("gateway.settlement_spooled", usage_event=event, error=type(error).__name__)
            await self._spool.keep(event, settlement)
            self._metrics.spooled.set(len(self._spool))
        finally:
            self._metrics.ledger_seconds.labels("settle").observe(time.perf_counter() - began)
        self._report(call, settlement)

    def _report(self, call: MeteredCall, settlement: Settlement) -> None:
        start, tokens = call.start, settlement.tokens
        seconds = (settlement.end_time - start.start_time).total_seconds()
        first = settlement.first_byte_time
        first_seconds = (first - start.start_time).total_seconds() if first else None
        error, cost = settlement.error_reason, settlement.cost
        unpriced = cost is None and tokens.total > 0
        _log.info(
            "gateway.call",
            usage_event=start.id,
            client=start.identity.client,
            sandbox=start.identity.sandbox,
            session=call.session,
            turn=call.turn,
            method=start.method.value,
            model=start.model,
            state=settlement.state.value,
            http_status=settlement.http_status,
            finish_reason=settlement.finish_reason,
            error_reason=error.value if error else None,
            prompt_tokens=tokens.prompt,
            cached_tokens=tokens.cached,
            output_tokens=tokens.output,
            thoughts_tokens=tokens.thoughts,
            tool_use_tokens=tokens.tool_use,
            cost_micros=cost.micros if cost else None,
            unpriced=unpriced,
            seconds=round(seconds, 4),
            first_byte_seconds=round(first_seconds, 4) if first_seconds is not None else None,
        )
        self._metrics.ended(
            method=start.method.value, model=start.model, status=settlement.http_status, error=error, tokens=tokens
        )
        self._metrics.call_seconds.labels(start.method.value).observe(seconds)
        if first_seconds is not None:
            self._metrics.first_byte_seconds.observe(first_seconds)
        if unpriced:
            self._metrics.unpriced.inc()

    def _withdraw(self, call: MeteredCall, *, asked: bool) -> None:
        """Note a row that may exist although its call was not made; it is settled at nothing when the ledger answers.

        Kept in memory only: if this gateway dies too, the sweep settles such a row at its estimate, marked so.
        """
        if not asked:
            return
        call.error = CallError.NOT_FORWARDED
        settlement = call.settlement(PriceBook(), at=self._clock.now())
        if len(self._withdrawn) >= _WITHDRAWN_LIMIT:
            self._withdrawn.pop(next(iter(self._withdrawn)))
        self._withdrawn[call.start.id] = (settlement, time.monotonic())

    async def _introduce(self) -> None:
        """Make sure that the ledger knows this gateway and that prices are known, before the first row."""
        if self._beaten is None:
            await self._ledger.beat(self.gateway)
            self._beaten = time.monotonic()
        if self._prices is None:
            await self._read_prices()

    def _priced(self, start: CallStart) -> CallStart:
        """Add what the reservation costs, for budgets in money."""
        reserved = start.reserved
        tokens = TokenCounts(prompt=reserved.prompt_tokens, output=reserved.output_tokens, total=reserved.tokens)
        prices = self._prices or PriceBook()
        priced = prices.price(tokens, model=start.model, model_version=None, at=start.start_time)
        return replace(start, reserved_cost=priced.cost if priced else None)

    async def _read_prices(self) -> None:
        self._prices = await self._store.load()
        self._prices_read = time.monotonic()

    async def _beat(self) -> None:
        await self._ledger.beat(self.gateway)
        self._beaten = time.monotonic()
        if self._prices is None or time.monotonic() - self._prices_read > _PRICES_FRESH:
            await self._read_prices()
        await self._sweep.run(silent_for=timedelta(seconds=self._timing.dead_after))

    async def _persist_progress(self) -> None:
        for call in [*self._open.values()]:
            progress = call.progress()
            if progress is not None and self._persisted.get(call.start.id) != progress.tokens:
                await self._ledger.record_progress(call.start.id, progress)
                if call.start.id in self._open:
                    self._persisted[call.start.id] = progress.tokens

    async def _drain(self) -> None:
        for event, settlement in await self._spool.waiting():
            try:
                await self._ledger.settle_call(event, settlement)
            except UsageEventNotFoundError:
                _log.error("gateway.usage_event_vanished", usage_event=event)
            except UnavailableError:
                raise
            except SandboxdError as error:  # one that the ledger will not take must not hold up the others
                _log.error("gateway.settlement_refused", usage_event=event, error=type(error).__name__)
                continue
            await self._spool.drop(event)
        self._metrics.spooled.set(len(self._spool))
        for event, (settlement, since) in [*self._withdrawn.items()]:
            try:
                await self._ledger.settle_call(event, settlement)
            except UsageEventNotFoundError:
                if time.monotonic() - since < _WITHDRAWN_TRIED:
                    continue
            self._withdrawn.pop(event, None)

    async def _guarded(self, operation: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do one step of the loop: its failure is logged, and the loop goes on."""
        try:
            async with asyncio.timeout(self._timing.settle):
                await work()
        except Exception as error:  # noqa: BLE001 - a loop
            self._metrics.ledger_failures.labels(operation).inc()
            _log.warning("gateway.ledger_step_failed", operation=operation, error=type(error).__name__)


_REMEMBERED: Final = frozenset({CallRefusal.BUDGET_SPENT, CallRefusal.PRICE_UNKNOWN})
"""What will be refused again for a while; the others the ledger must be asked for each time."""
_REFUSALS: Final = {
    CallRefusal.INCARNATION_ENDED: RefusalReason.INCARNATION_ENDED,
    CallRefusal.SUSPENDED: RefusalReason.SUSPENDED,
    CallRefusal.BUDGET_SPENT: RefusalReason.BUDGET_SPENT,
    CallRefusal.PRICE_UNKNOWN: RefusalReason.PRICE_UNKNOWN,
}
