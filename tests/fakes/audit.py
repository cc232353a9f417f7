"""An audit trail and a store in memory, with the weather that the real ones have: down, hanging, answer lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sandboxd.bootstrap.sources import SystemClock
from sandboxd.model.audit import FIRST_HASH, AuditEntry, AuditKind, SignedHead, entry_hash
from sandboxd.model.errors import DatabaseUnavailableError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.monitor.audit_desk import AuditDesk
from sandboxd.monitor.audit_ports import (
    OUTSIDERS,
    AuditFilter,
    AuditRecord,
    AuditTrail,
    AuditUnavailableError,
    ChainHead,
    Deed,
    Draft,
    DraftText,
    Intent,
    OpenIntent,
    Outcome,
    Placed,
)


@dataclass(kw_only=True)
class FakeAuditTrail:
    """Remembers what was said, in order."""

    said: list[tuple[str, Deed, Outcome | None]] = field(default_factory=list)
    """(`intend`, `conclude` or `deny`, the deed, the outcome)"""
    down: bool = False

    async def intend(self, deed: Deed, *, timeout: timedelta) -> Intent:
        if self.down:
            raise AuditUnavailableError
        self.said.append(("intend", deed, None))
        return Intent(deed=deed, sequence=len(self.said))

    def conclude(self, intent: Intent, outcome: Outcome) -> None:
        self.said.append(("conclude", intent.deed, outcome))

    def deny(self, deed: Deed, outcome: Outcome) -> None:
        self.said.append(("deny", deed, outcome))

    async def settle(self, *, timeout: timedelta) -> None: ...

    async def erase(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        return 0


@dataclass(kw_only=True)
class FakeAuditStore:
    """Chains in memory."""

    chains: dict[ClientId, list[AuditEntry]] = field(default_factory=dict)
    texts: dict[tuple[ClientId, int], list[DraftText]] = field(default_factory=dict)
    open: dict[tuple[ClientId, int], tuple[Draft, str]] = field(default_factory=dict)
    living: set[str] = field(default_factory=set)
    groups: list[int] = field(default_factory=list)
    """Size of each transaction."""
    begun: int = 0
    """Transactions that were begun."""
    down: bool = False
    lose_answers: int = 0
    busy: set[ClientId] = field(default_factory=set)
    """Chains that somebody else holds."""
    gate: asyncio.Event | None = None
    """Holds up every transaction until it is set."""
    unstorable: str | None = None
    """An action that cannot be stored."""

    async def append(
        self, drafts: Sequence[Draft], *, repeated: bool = False, patient: bool = False
    ) -> Sequence[int | Placed]:
        self.begun += 1
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.down or (patient and any(draft.entry.chain in self.busy for draft in drafts)):
            raise DatabaseUnavailableError("Down.")
        if any(draft.entry.action == self.unstorable for draft in drafts):
            raise ValueError("cannot be stored")
        placed = [self._place(draft, repeated=repeated) for draft in drafts]
        self.groups.append(len(drafts))
        if self.lose_answers:
            self.lose_answers -= 1
            raise DatabaseUnavailableError("The answer was lost.")
        return placed

    async def abandoned(self, *, limit: int) -> Sequence[OpenIntent]:
        return [
            OpenIntent(
                chain=chain,
                sequence=sequence,
                action=draft.entry.action,
                role=draft.entry.role,
                target=draft.entry.target,
                request_id=draft.entry.request_id,
            )
            for (chain, sequence), (draft, replica) in self.open.items()
            if replica not in self.living
        ][:limit]

    async def erase(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        erased, outsiders = 0, tuple(f"{role}:" for role in OUTSIDERS)
        for (chain, sequence), texts in self.texts.items():
            kept = [
                text
                for text in texts
                if chain != client
                or (text.person.startswith(outsiders) if freelancer is None else text.person != freelancer)
            ]
            erased += len(texts) - len(kept)
            self.texts[chain, sequence] = kept
        return erased

    def entries(self, chain: str = "acme") -> list[AuditEntry]:
        return self.chains.get(ClientId(chain), [])

    def records(self, chain: str = "acme") -> list[AuditRecord]:
        return [
            AuditRecord(entry=entry, texts=tuple(one.text for one in self.texts.get((entry.chain, entry.sequence), ())))
            for entry in self.entries(chain)
        ]

    def _place(self, draft: Draft, *, repeated: bool) -> int | Placed:
        chain = draft.entry.chain
        entries = self.chains.setdefault(chain, [])
        for entry in entries:
            if entry.id == draft.entry.id:
                assert repeated, "written twice"
                return entry.sequence
        if chain in self.busy:
            return Placed.BUSY
        if draft.only_if_open and (chain, draft.entry.intent) not in self.open:
            return Placed.NEEDLESS
        prev_hash = entries[-1].hash if entries else FIRST_HASH
        entry = replace(draft.entry, sequence=len(entries) + 1, prev_hash=prev_hash)
        entries.append(replace(entry, hash=entry_hash(entry)))
        self.texts[chain, entry.sequence] = list(draft.texts)
        if entry.kind is AuditKind.INTENT:
            self.open[chain, entry.sequence] = (draft, draft.replica)
        elif entry.kind is AuditKind.OUTCOME:
            self.open.pop((chain, entry.intent), None)
        return entry.sequence


@dataclass(kw_only=True)
class FakeAuditReader:
    """Reads the chains of a store in memory; filters by kind alone."""

    store: FakeAuditStore
    signed: list[SignedHead] = field(default_factory=list)

    async def head(self, chain: ClientId) -> ChainHead:
        entries = self.store.entries(chain)
        if not entries:
            return ChainHead(chain=chain, sequence=0, hash=FIRST_HASH)
        return ChainHead(chain=chain, sequence=entries[-1].sequence, hash=entries[-1].hash)

    async def records(
        self, chain: ClientId, where: AuditFilter, *, after: int, limit: int, newest_first: bool = False
    ) -> Sequence[AuditRecord]:
        found = [one for one in self.store.records(chain) if not where.kinds or one.entry.kind in where.kinds]
        if newest_first:
            return [one for one in reversed(found) if not after or one.entry.sequence < after][:limit]
        return [one for one in found if one.entry.sequence > after][:limit]

    async def heads(self, chain: ClientId, *, after: int, until: int) -> Sequence[SignedHead]:
        return [one for one in self.signed if one.chain == chain and after < one.sequence <= until]

    async def unsigned(self, key_id: str, *, limit: int) -> Sequence[ChainHead]:
        done = {(one.chain, one.sequence) for one in self.signed}
        heads = [await self.head(chain) for chain in self.store.chains]
        return [head for head in heads if (head.chain, head.sequence) not in done][:limit]

    async def add_heads(self, heads: Sequence[SignedHead]) -> None:
        self.signed += heads


class FakeAuditKeys:
    """One key in memory."""

    key_id = "fake"

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message)

    def check(self, key_id: str, message: bytes, signature: bytes) -> bool | None:
        return signature == self.sign(message) if key_id == self.key_id else None

    def public_keys(self) -> Mapping[str, bytes]:
        return {self.key_id: self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)}


@dataclass(kw_only=True)
class FakeHeadExport:
    """Heads that somebody else keeps."""

    kept: list[SignedHead] = field(default_factory=list)
    full: bool = False

    async def append(self, heads: Sequence[SignedHead]) -> None:
        if self.full:
            raise OSError("No space left on device")
        self.kept += heads

    async def read(self, chain: ClientId) -> AsyncIterator[SignedHead]:
        for head in self.kept:
            if head.chain == chain:
                yield head


def a_desk(trail: AuditTrail) -> AuditDesk:
    """A desk over empty chains."""
    return AuditDesk(
        reader=FakeAuditReader(store=FakeAuditStore()),
        trail=trail,
        keys=FakeAuditKeys(),
        outside=FakeHeadExport(),
        clock=SystemClock(),
    )
