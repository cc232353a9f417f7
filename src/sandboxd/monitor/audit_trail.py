"""The audit trail: drafts entries, has them written in groups, and concludes what others left open."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

import structlog
from typing_extensions import override

from sandboxd.model.audit import SALT_BYTES, AuditEntry, AuditKind, AuditText, text_digest
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.sources import Clock, IdSource
from sandboxd.monitor.audit_ports import (
    AuditStore,
    AuditTrail,
    AuditUnavailableError,
    Deed,
    Draft,
    DraftText,
    Intent,
    OpenIntent,
    Outcome,
    Placed,
)
from sandboxd.monitor.audit_writer import ATTEMPT, AuditMetrics, AuditWriter
from sandboxd.monitor.denials import Denials

log = structlog.get_logger(__name__)

MAX_TEXT_CHARS: Final = 500
"""A text is cut there: names and titles are shorter, and an entry must not grow with what a caller sends."""
FLUSH_INTERVAL: Final = timedelta(minutes=1)
"""How often counted refusals are written."""
SWEEP_INTERVAL: Final = timedelta(seconds=15)
"""How often the open intents of dead replicas are looked for."""
SWEEP_BATCH: Final = 200
_NOT_RUN: Final = Outcome(code="UNAVAILABLE", reason="NOT_RUN")
"""An intent that became durable too late: its call was refused."""
_LOST: Final = Outcome(code="UNKNOWN", reason="REPLICA_LOST")
"""The process that had to conclude it does not live any more."""


class GroupedAuditTrail(AuditTrail):
    """The trail of one replica."""

    def __init__(
        self,
        store: AuditStore,
        *,
        clock: Clock,
        ids: IdSource,
        replica: str,
        metrics: AuditMetrics,
        attempt: timedelta = ATTEMPT,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._replica = replica
        self._metrics = metrics
        self._writer = AuditWriter(store, metrics, attempt=attempt)
        self._writer.on_lost(self._not_run)
        self._denials = Denials()

    @override
    async def intend(self, deed: Deed, *, timeout: timedelta) -> Intent:
        try:
            item = self._writer.put(self._draft(AuditKind.INTENT, deed, replica=self._replica))
        except AuditUnavailableError:
            self._metrics.refused.inc()
            raise
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                place = await asyncio.shield(item.done)
        except (TimeoutError, AuditUnavailableError) as error:
            self._writer.abandon(item)
            self._metrics.refused.inc()
            raise AuditUnavailableError from error
        except asyncio.CancelledError:
            self._writer.abandon(item)
            raise
        if isinstance(place, Placed):
            raise AuditUnavailableError
        return Intent(deed=deed, sequence=place)

    @override
    def conclude(self, intent: Intent, outcome: Outcome) -> None:
        self._writer.put(self._draft(AuditKind.OUTCOME, intent.deed, outcome, intent=intent.sequence), always=True)

    @override
    def deny(self, deed: Deed, outcome: Outcome) -> None:
        self._metrics.denials.inc()
        if self._denials.is_single(deed):
            try:
                self._writer.put(self._draft(AuditKind.DENIED, deed, outcome))
                return
            except AuditUnavailableError:
                pass  # counted, then: what waits is bounded
        self._denials.count(deed, outcome, at=self._clock.now())

    @override
    async def settle(self, *, timeout: timedelta) -> None:
        self._flush()
        await self._writer.settle(seconds=timeout.total_seconds())

    @override
    async def erase(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        # What is on its way has texts, too.
        await self._writer.settle(seconds=5)
        return await self._store.erase(client, freelancer)

    async def run(self) -> None:
        """Write, count and sweep until cancelled, or closed and empty; owned by the service's task group."""
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._writer.run(), name="audit-writer")
            helpers = [
                tasks.create_task(self._flush_now_and_then(), name="audit-denials"),
                tasks.create_task(self._sweep_now_and_then(), name="audit-sweep"),
            ]
            await asyncio.wait([writing])
            for helper in helpers:
                helper.cancel()

    async def close(self, *, timeout: timedelta) -> None:
        """Take no new intents, and write what waits within the time; what is then open is concluded by others."""
        self._flush()
        self._writer.close()
        await self._writer.settle(seconds=timeout.total_seconds())
        if left := self._writer.waiting:
            log.error("audit.not_written", entries=left)

    async def sweep(self) -> int:
        """Conclude open intents of dead replicas, whose outcome is unknown; answers how many were found."""
        found = await self._store.abandoned(limit=SWEEP_BATCH)
        items = [self._writer.put(self._conclusion(each), always=True) for each in found]
        if items:
            log.warning("audit.concluding_for_others", intents=len(items))
            await asyncio.wait([item.done for item in items])
        return len(items)

    async def _flush_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL.total_seconds())
            self._flush()

    async def _sweep_now_and_then(self) -> None:
        while True:
            try:
                while await self.sweep() == SWEEP_BATCH:
                    await asyncio.sleep(0)
            except UnavailableError as error:
                log.warning("audit.sweep_interrupted", error=error.message)
            await asyncio.sleep(SWEEP_INTERVAL.total_seconds())

    def _flush(self) -> None:
        for tally in self._denials.flush():
            draft = self._draft(AuditKind.DENIED, tally.deed, tally.outcome, count=tally.count, since=tally.since)
            try:
                self._writer.put(draft)
            except AuditUnavailableError:
                log.error("audit.denials_not_written", count=tally.count, reason=tally.outcome.reason)  # noqa: TRY400

    def _not_run(self, draft: Draft, sequence: int) -> None:
        """An intent was written after its caller had been told that it could not be."""
        if draft.entry.kind is AuditKind.INTENT:
            self._writer.put(self._draft(AuditKind.OUTCOME, _deed_of(draft), _NOT_RUN, intent=sequence), always=True)

    def _conclusion(self, left: OpenIntent) -> Draft:
        deed = Deed(
            client=left.chain, role=left.role, action=left.action, target=left.target, request_id=left.request_id
        )
        return self._draft(AuditKind.OUTCOME, deed, _LOST, intent=left.sequence, only_if_open=True)

    def _draft(
        self,
        kind: AuditKind,
        deed: Deed,
        outcome: Outcome | None = None,
        *,
        intent: int = 0,
        count: int = 1,
        since: datetime | None = None,
        replica: str = "",
        only_if_open: bool = False,
    ) -> Draft:
        # An outcome is about the same people as its intent, which has their texts.
        texts = {} if kind is AuditKind.OUTCOME else _texts(deed)
        drafted = tuple(
            DraftText(text=AuditText(name=name, value=value, salt=secrets.token_bytes(SALT_BYTES)), person=person)
            for name, (value, person) in texts.items()
        )
        entry = AuditEntry(
            chain=deed.client,
            sequence=0,
            id=self._ids.new("aud"),
            time=self._clock.now(),
            kind=kind,
            action=deed.action,
            role=deed.role,
            target=(outcome.target if outcome else "") or deed.target,
            request_id=deed.request_id,
            intent=intent,
            code=outcome.code if outcome else "",
            reason=outcome.reason if outcome else "",
            count=count,
            since=since if count > 1 else None,
            digests={one.text.name: text_digest(one.text.value, salt=one.text.salt) for one in drafted},
            prev_hash=b"",
            hash=b"",
        )
        return Draft(entry=entry, texts=drafted, replica=replica, only_if_open=only_if_open)


def _texts(deed: Deed) -> Mapping[str, tuple[str, str]]:
    """Personal texts of a deed by name, each with the freelancer whom it is about; empty where that is not known."""
    whom = str(deed.freelancer or "")
    own = deed.actor if deed.role == "freelancer" else f"{deed.role}:{deed.actor}"
    texts = {name: (value, whom) for name, value in deed.texts.items()}
    texts |= {"actor": (deed.actor, own), "peer": (deed.peer, own)}
    if whom:
        texts["freelancer"] = (whom, whom)
    return {name: (value[:MAX_TEXT_CHARS], person) for name, (value, person) in texts.items() if value}


def _deed_of(draft: Draft) -> Deed:
    entry = draft.entry
    return Deed(
        client=entry.chain,
        role=entry.role,
        action=entry.action,
        target=entry.target,
        request_id=entry.request_id,
    )
