"""Group writer of the audit: entries that wait at the same moment are written in one transaction.

A chain is held by one transaction at a time, and only for the length of that one transaction: what comes meanwhile
gathers and goes together in the next one. So 200 mutations of one client cost a handful of commits, and none of them
queues behind another one's work. Chains that another replica holds are left out and written by themselves, so that a
replica that stands still holds up its own clients only.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sandboxd.model.errors import ConflictError, UnavailableError
from sandboxd.model.ids import ClientId
from sandboxd.monitor.audit_ports import AuditStore, AuditUnavailableError, Draft, Placed

log = structlog.get_logger(__name__)

LANES: Final = 3
"""Transactions at the same time, of different chains."""
ATTEMPT: Final = timedelta(seconds=3)
"""How long one transaction may take. On a connection that has gone silent nothing would tell before the driver's own
limit, and the chain would be held meanwhile; an intent is waited for a little longer than this."""
MAX_BATCH: Final = 256
"""Entries in one transaction."""
MAX_WAITING: Final = 10_000
"""Entries that may wait; beyond it new intents are refused. Outcomes are always taken: there are no more of them than
intents."""
FIRST_RETRY_SECONDS: Final = 0.05
LAST_RETRY_SECONDS: Final = 1.0


class AuditMetrics:
    """What is counted of the audit. `kind` is one of the three kinds of entries."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.entries = Counter("sandboxd_audit_entries_total", "Audit entries written.", ["kind"], registry=registry)
        self.groups = Counter(
            "sandboxd_audit_groups_total", "Transactions that wrote audit entries.", registry=registry
        )
        self.failures = Counter(
            "sandboxd_audit_failures_total",
            "Transactions of the audit that failed and are repeated.",
            registry=registry,
        )
        self.seconds = Histogram(
            "sandboxd_audit_write_seconds",
            "Time from an entry's coming to its being durable.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=registry,
        )
        self.waiting = Gauge("sandboxd_audit_waiting", "Audit entries that wait to be written.", registry=registry)
        self.refused = Counter(
            "sandboxd_audit_refused_total",
            "Mutations refused because the audit could not be written.",
            registry=registry,
        )
        self.denials = Counter("sandboxd_audit_denials_total", "Refused calls that were counted.", registry=registry)


@dataclass(slots=True, eq=False)
class Waiting:
    """A draft on its way."""

    draft: Draft
    done: asyncio.Future[int | Placed]
    came: float = field(default_factory=time.monotonic)
    tried: bool = False
    """True where a transaction with it failed, so that it may be there already."""


class AuditWriter:
    """Writes drafts in groups, and repeats what failed."""

    def __init__(self, store: AuditStore, metrics: AuditMetrics, *, attempt: timedelta = ATTEMPT) -> None:
        self._store = store
        self._attempt = attempt.total_seconds()
        self._metrics = metrics
        self._chains: dict[ClientId, deque[Waiting]] = {}
        """Chains that have something to write, those that have waited longest first."""
        self._held: set[ClientId] = set()
        """Chains in a transaction of ours now."""
        self._contended: set[ClientId] = set()
        """Chains that were found held by somebody else: they are written by themselves."""
        self._outstanding: dict[asyncio.Future[int | Placed], None] = {}
        self._ready = asyncio.Event()
        self._closing = False
        self._lost: Callable[[Draft, int], None] = lambda _draft, _sequence: None

    def on_lost(self, told: Callable[[Draft, int], None]) -> None:
        """Name who is told of drafts that were written after their waiter had gone."""
        self._lost = told

    @property
    def waiting(self) -> int:
        """How many drafts are not written yet."""
        return len(self._outstanding)

    def put(self, draft: Draft, *, always: bool = False) -> Waiting:
        """Queue a draft.

        Raises:
            AuditUnavailableError: Too many wait; only if not `always`.
        """
        if not always and (self._closing or self.waiting >= MAX_WAITING):
            raise AuditUnavailableError
        done: asyncio.Future[int | Placed] = asyncio.get_running_loop().create_future()
        item = Waiting(draft, done)
        self._chains.setdefault(draft.entry.chain, deque()).append(item)
        self._outstanding[done] = None
        done.add_done_callback(self._settled)
        self._metrics.waiting.set(self.waiting)
        self._ready.set()
        return item

    def abandon(self, item: Waiting) -> None:
        """Nobody waits for an intent any more: do not write it, or tell of it where it is written all the same."""
        if item.done.done():
            self._tell(item)
            return
        chain = self._chains.get(item.draft.entry.chain)
        if not item.tried and chain is not None and item in chain:
            chain.remove(item)
            item.done.cancel()
        else:
            item.done.add_done_callback(lambda _: self._tell(item))

    async def settle(self, *, seconds: float) -> None:
        """Wait until what waits now is written, at most so long."""
        if self._outstanding:
            await asyncio.wait(list(self._outstanding), timeout=seconds)

    async def run(self) -> None:
        """Write until closed and empty, or cancelled; owned by the service's task group."""
        async with asyncio.TaskGroup() as lanes:
            for number in range(LANES):
                lanes.create_task(self._lane(), name=f"audit-writer-{number}")

    def close(self) -> None:
        """Let `run` return once everything is written; refuse new intents."""
        self._closing = True
        self._ready.set()

    async def _lane(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            batch = self._take()
            if not batch:
                if self._closing and not self._outstanding:
                    self._ready.set()  # wakes the other lanes, so that they see it, too
                    return
                self._ready.clear()
                await self._ready.wait()
                continue
            chains = {item.draft.entry.chain for item in batch}
            try:
                failed = await self._write(batch)
            finally:
                self._held -= chains
                self._ready.set()
            if failed:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  jitter is no secret
                delay = min(delay * 2, LAST_RETRY_SECONDS)
            else:
                delay = FIRST_RETRY_SECONDS

    def _take(self) -> list[Waiting]:
        """Take what waits in the chains that nobody holds; a contended chain goes by itself."""
        batch: list[Waiting] = []
        for chain in list(self._chains):
            if chain in self._held:
                continue
            alone = chain in self._contended
            if alone and batch:
                continue
            items = self._chains.pop(chain)
            while items and len(batch) < MAX_BATCH:
                batch.append(items.popleft())
            if items:
                self._chains[chain] = items
            self._held.add(chain)
            if alone or len(batch) >= MAX_BATCH:
                break
        return batch

    async def _write(self, batch: Sequence[Waiting]) -> bool:
        """Write one group; tells whether it failed, so that it waits again."""
        chain = batch[0].draft.entry.chain
        patient = chain in self._contended
        try:
            async with asyncio.timeout(self._attempt):
                placed = await self._store.append(
                    [item.draft for item in batch], repeated=any(item.tried for item in batch), patient=patient
                )
        except (UnavailableError, ConflictError, TimeoutError) as error:
            self._metrics.failures.inc()
            log.warning("audit.unavailable", entries=len(batch), error=str(error) or "no answer in time")
            for item in batch:
                item.tried = True
            self._put_back(batch)
            return True
        except asyncio.CancelledError:
            for item in batch:
                item.done.cancel()
            raise
        except Exception:  # a task guard: one draft that cannot be stored must not end the audit
            self._metrics.failures.inc()
            log.exception("audit.append_failed", entries=len(batch))
            if len(batch) > 1:
                return any([await self._write([item]) for item in batch])
            if not batch[0].done.done():
                batch[0].done.set_exception(AuditUnavailableError())
                batch[0].done.exception()  # nobody may be waiting any more
            return False
        self._metrics.groups.inc()
        self._contended.discard(chain)
        busy = []
        for item, place in zip(batch, placed, strict=True):
            if place is Placed.BUSY:
                self._contended.add(item.draft.entry.chain)
                busy.append(item)
                continue
            if not item.done.done():
                item.done.set_result(place)
            if place is not Placed.NEEDLESS:
                self._metrics.entries.labels(kind=item.draft.entry.kind.value).inc()
                self._metrics.seconds.observe(time.monotonic() - item.came)
        self._put_back(busy)
        return False

    def _put_back(self, batch: Sequence[Waiting]) -> None:
        for item in reversed(batch):
            self._chains.setdefault(item.draft.entry.chain, deque()).appendleft(item)

    def _settled(self, done: asyncio.Future[int | Placed]) -> None:
        self._outstanding.pop(done, None)
        self._metrics.waiting.set(self.waiting)
        if self._closing and not self._outstanding:
            self._ready.set()

    def _tell(self, item: Waiting) -> None:
        if item.done.cancelled() or item.done.exception() is not None:
            return
        place = item.done.result()
        if isinstance(place, int):
            self._lost(item.draft, place)
