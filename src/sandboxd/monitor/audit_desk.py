"""The audit's desk: lists, verifies and exports chains for those who may read them. Reads, and changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from sandboxd.model.audit import FIRST_HASH, AuditEntry, ExportSeal, SignedHead
from sandboxd.model.audit_chain import ChainVerifier, Finding
from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import NotFoundError
from sandboxd.model.ids import ClientId
from sandboxd.model.sources import Clock
from sandboxd.monitor.audit_ports import (
    AuditFilter,
    AuditKeys,
    AuditReader,
    AuditRecord,
    AuditTrail,
    HeadExport,
)

CHUNK: Final = 500
"""Entries that are in memory at the same time."""
SETTLE_WAIT: Final = timedelta(seconds=5)
"""How long a reader waits for what this replica has to write yet."""
_EVERYTHING: Final = AuditFilter()
_NO_END: Final = (1 << 63) - 1


class AuditChainNotFoundError(NotFoundError):
    """There is no such chain, or it is somebody else's."""

    reason = "AUDIT_CHAIN_NOT_FOUND"

    def __init__(self, chain: ClientId) -> None:
        name = chain_name(chain)
        super().__init__(f"There is no audit chain {name}.", chain=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a check is."""

    sequence: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a check ended."""

    chain: ClientId
    valid: bool
    entries: int
    heads: int
    texts: int
    withheld: int
    last: int
    last_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportBegin:
    """What an export holds."""

    chain: ClientId
    first: int
    prev_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A key that is trusted here."""

    key_id: str
    pem: bytes


ExportItem = ExportBegin | PublicKey | SignedHead | AuditRecord | ExportSeal


class AuditDesk:
    """Serves readers of the audit."""

    def __init__(
        self, *, reader: AuditReader, trail: AuditTrail, keys: AuditKeys, outside: HeadExport, clock: Clock
    ) -> None:
        self._reader = reader
        self._trail = trail
        self._keys = keys
        self._outside = outside
        self._clock = clock

    async def list(
        self,
        caller: Caller,
        chain: ClientId | None,
        where: AuditFilter,
        *,
        after: int,
        limit: int,
        newest_first: bool,
    ) -> Sequence[AuditRecord]:
        """Entries of a chain beyond a sequence number; `chain` None is the caller's own.

        Raises:
            AuditChainNotFoundError: The chain is somebody else's.
        """
        chosen = choose_chain(caller, chain)
        await self._trail.settle(timeout=SETTLE_WAIT)
        return await self._reader.records(chosen, where, after=after, limit=limit, newest_first=newest_first)

    async def verify(
        self, caller: Caller, chain: ClientId | None, *, first: int
    ) -> AsyncIterator[Progress | Finding | Verdict]:
        """Check a chain, against the heads inside the database and those outside of it.

        Raises:
            AuditChainNotFoundError: The chain is somebody else's.
        """
        chosen = choose_chain(caller, chain)
        await self._trail.settle(timeout=SETTLE_WAIT)
        end = await self._reader.head(chosen)
        verifier = ChainVerifier(
            chain=chosen, check=self._keys.check, first=first, prev_hash=await self._hash_before(chosen, first)
        )
        verifier.anchor(end.sequence, end.hash)
        outside = _Lookahead(self._outside.read(chosen))
        async for records in self._chunks(chosen, first=first, last=None):
            last = records[-1].entry.sequence
            for head in await self._reader.heads(chosen, after=verifier.last, until=last):
                verifier.expect(head)
            async for head in outside.until(last):
                verifier.expect(head)
            for record in records:
                verifier.feed(record.entry, record.texts)
            yield Progress(sequence=last, last=max(end.sequence, last))
            if last >= end.sequence:
                break
        beyond = [*await self._reader.heads(chosen, after=verifier.last, until=_NO_END)]
        beyond += [head async for head in outside.until(_NO_END)]
        # The chain may have gone on meanwhile, and its new end may be signed: only what is beyond it was cut off.
        now = await self._reader.head(chosen)
        for head in beyond:
            if head.sequence > now.sequence:
                verifier.expect(head)
        if now.sequence < verifier.last:
            verifier.expect_end(now.sequence, now.hash)
        findings = verifier.finish()
        for finding in findings:
            yield finding
        yield Verdict(
            chain=chosen,
            valid=not findings,
            entries=verifier.entries,
            heads=verifier.heads,
            texts=verifier.texts,
            withheld=verifier.withheld,
            last=verifier.last,
            last_hash=verifier.last_hash,
        )

    async def export(self, caller: Caller, chain: ClientId | None, *, first: int) -> AsyncIterator[ExportItem]:
        """A chain with everything that is needed to verify it, from some entry on, ended by a signed seal.

        Raises:
            AuditChainNotFoundError: The chain is somebody else's.
        """
        chosen = choose_chain(caller, chain)
        await self._trail.settle(timeout=SETTLE_WAIT)
        end = await self._reader.head(chosen)
        prev_hash = await self._hash_before(chosen, first)
        yield ExportBegin(chain=chosen, first=first, prev_hash=prev_hash)
        for key_id, pem in sorted(self._keys.public_keys().items()):
            yield PublicKey(key_id=key_id, pem=pem)
        last, heads = first - 1, 0
        async for records in self._chunks(chosen, first=first, last=end.sequence):
            until = records[-1].entry.sequence
            for head in await self._reader.heads(chosen, after=last, until=until):
                heads += 1
                yield head
            for record in records:
                yield record
            last = until
        # What the chain's own row says: where entries are gone from its end, the seal shows it.
        last, end_hash = (end.sequence, end.hash) if end.sequence >= first else (first - 1, prev_hash)
        seal = ExportSeal(
            chain=chosen,
            first=first,
            prev_hash=prev_hash,
            last=last,
            hash=end_hash,
            heads=heads,
            time=self._clock.now(),
            key_id=self._keys.key_id,
            signature=b"",
        )
        yield replace(seal, signature=self._keys.sign(seal.message()))

    async def _chunks(self, chain: ClientId, *, first: int, last: int | None) -> AsyncIterator[Sequence[AuditRecord]]:
        after = first - 1
        while records := await self._reader.records(chain, _EVERYTHING, after=after, limit=CHUNK):
            after = records[-1].entry.sequence
            if last is not None:
                records = [record for record in records if record.entry.sequence <= last]
            if records:
                yield records
            if last is not None and after >= last:
                return

    async def _hash_before(self, chain: ClientId, first: int) -> bytes:
        if first <= 1:
            return FIRST_HASH
        before = await self._reader.records(chain, _EVERYTHING, after=first - 2, limit=1)
        found: AuditEntry | None = before[0].entry if before else None
        return found.hash if found is not None and found.sequence == first - 1 else FIRST_HASH


class _Lookahead:
    """Takes heads from outside as far as they are needed."""

    def __init__(self, heads: AsyncIterator[SignedHead]) -> None:
        self._heads = heads
        self._next: SignedHead | None = None

    async def until(self, sequence: int) -> AsyncIterator[SignedHead]:
        """The heads up to a sequence number that were not taken yet."""
        while True:
            if self._next is None:
                self._next = await anext(self._heads, None)
            if self._next is None or self._next.sequence > sequence:
                return
            head, self._next = self._next, None
            yield head


def choose_chain(caller: Caller, wanted: ClientId | None) -> ClientId:
    """Say which chain a caller reads.

    Raises:
        AuditChainNotFoundError: It is not the caller's to read.
    """
    if wanted is None or wanted == caller.client:
        return caller.client
    if caller.role is not Role.PLATFORM:
        raise AuditChainNotFoundError(wanted)
    return wanted


def chain_name(chain: ClientId) -> str:
    """Name a chain: `clients/{client}`, or `system`."""
    return f"clients/{chain}" if chain else "system"
