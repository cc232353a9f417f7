"""Verifies a chain: every entry by its hash, every link, and what signed heads and seals say about the whole.

Pure and incremental: entries go in one after the other, findings come out at the end, and memory does not grow with the
chain. The service uses it on the database, `sandboxctl audit verify` on an export, offline.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sandboxd.model.audit import FIRST_HASH, AuditEntry, AuditText, ExportSeal, SignedHead, entry_hash, text_digest
from sandboxd.model.ids import ClientId

MAX_FINDINGS = 1000
"""Findings of one run; whoever has more has to begin with the first."""

SignatureCheck = Callable[[str, bytes, bytes], "bool | None"]
"""(key id, message, signature) → whether it is good; None where the key is not trusted here."""


class FindingKind(enum.Enum):
    """What is wrong."""

    CHANGED = "CHANGED"
    """The entry is not the one that was written."""
    MISSING = "MISSING"
    """Entries between others are not there."""
    REORDERED = "REORDERED"
    """The entry does not stand where it was written."""
    ADDED = "ADDED"
    """The entry does not belong here: a second one with this number, one of another chain, or one behind the end."""
    CUT = "CUT"
    """The chain ends before a place that it is known to have reached."""
    REWRITTEN = "REWRITTEN"
    """The entries fit together, but not to what was signed when they were written."""
    BAD_SIGNATURE = "BAD_SIGNATURE"
    """A head or a seal is not what was signed."""
    UNKNOWN_KEY = "UNKNOWN_KEY"
    """A head or a seal was signed with a key that is not trusted."""
    HEAD_MISSING = "HEAD_MISSING"
    """The export held more signed heads, or fewer."""
    TEXT_CHANGED = "TEXT_CHANGED"
    """A text is not the one whose digest the entry holds."""
    UNREADABLE = "UNREADABLE"
    """A record of the export cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, and where."""

    kind: FindingKind
    sequence: int
    """First entry that it is about."""
    until: int
    """Last entry that it is about."""
    detail: str
    """What is wrong, in plain words."""


class ChainVerifier:
    """Checks one chain, or a part of it from some entry on."""

    def __init__(
        self, *, chain: ClientId, check: SignatureCheck, first: int = 1, prev_hash: bytes = FIRST_HASH
    ) -> None:
        self._chain = chain
        self._check = check
        self._next = first
        """Sequence that comes next."""
        self._hash = prev_hash
        """Hash of the entry before it, as that entry says."""
        self._linked = True
        """False where the entry before is known to be wrong, so that its hash proves nothing."""
        self._gaps: dict[int, int] = {}
        """First missing to last missing."""
        self._heads: dict[int, list[SignedHead]] = {}
        self._anchors: dict[int, bytes] = {}
        self._furthest = first - 1
        self._signed = first - 1
        """Last entry that agreed with a signed head."""
        self._findings: list[Finding] = []
        self.entries = 0
        self.texts = 0
        self.withheld = 0
        """Texts whose digest is there and which are not: erased, or left out of the export."""
        self.heads = 0

    @property
    def last(self) -> int:
        """Sequence of the last entry that was seen."""
        return self._next - 1

    @property
    def last_hash(self) -> bytes:
        """Hash of the last entry that was seen."""
        return self._hash

    def report(self, kind: FindingKind, sequence: int, detail: str, *, until: int | None = None) -> None:
        """Add a finding."""
        if len(self._findings) < MAX_FINDINGS:
            self._findings.append(
                Finding(kind=kind, sequence=sequence, until=sequence if until is None else until, detail=detail)
            )

    def expect(self, head: SignedHead) -> None:
        """Take a signed head, before the entry that it names is fed."""
        self.heads += 1
        if head.chain != self._chain:
            self.report(FindingKind.ADDED, head.sequence, f"the signed head belongs to the chain {head.chain!r}")
        elif self._is_signed(head.key_id, head.message(), head.signature, f"head {head.sequence}", head.sequence):
            self._heads.setdefault(head.sequence, []).append(head)
            self._furthest = max(self._furthest, head.sequence)

    def anchor(self, sequence: int, known: bytes) -> None:
        """Say which hash an entry is known to have, before it is fed."""
        if sequence >= self._next:
            self._anchors[sequence] = known
            self._furthest = max(self._furthest, sequence)

    def skip(self, kind: FindingKind, detail: str) -> None:
        """Report an entry that cannot be fed, and go on behind it."""
        self.report(kind, self._next, detail)
        self.entries += 1
        self._next, self._linked = self._next + 1, False

    def feed(self, entry: AuditEntry, texts: Sequence[AuditText] = ()) -> None:
        """Check the next entry and the texts that lie beside it."""
        self.entries += 1
        if entry.chain != self._chain:
            self.report(FindingKind.ADDED, self._next, f"the entry belongs to the chain {entry.chain!r}")
            return
        sound = entry_hash(entry) == entry.hash
        if not sound and entry.sequence != self._next and _is_renumbered(entry, self._next):
            self.report(FindingKind.CHANGED, self._next, f"its number was changed to {entry.sequence}")
            entry, sound = replace(entry, sequence=self._next), True
        elif not sound:
            self.report(FindingKind.CHANGED, entry.sequence, "its content does not give its hash")
        self._check_texts(entry, texts)
        if entry.sequence < self._next:
            self._place_late(entry)
            return
        if entry.sequence > self._next:
            self._gaps[self._next] = entry.sequence - 1
        elif self._linked and sound and entry.prev_hash != self._hash:
            # Both are sound in themselves, so the one before was replaced by another that is.
            before = max(entry.sequence - 1, 1)
            self.report(FindingKind.CHANGED, before, f"entry {entry.sequence} was written after another one than this")
        self._next, self._hash, self._linked = entry.sequence + 1, entry.hash, sound
        self._check_heads(entry, sound=sound)

    def seal(self, seal: ExportSeal, *, first: int, prev_hash: bytes, heads: int) -> None:
        """Compare what came with what the export says about itself."""
        if seal.chain != self._chain:
            self.report(FindingKind.ADDED, seal.last, f"the seal belongs to the chain {seal.chain!r}")
            return
        if not self._is_signed(seal.key_id, seal.message(), seal.signature, "seal of the export", seal.last):
            return
        if (seal.first, seal.prev_hash) != (first, prev_hash):
            self.report(FindingKind.CHANGED, seal.first, f"the export began with entry {seal.first}, as its seal says")
        if seal.heads != heads:
            detail = f"the export held {seal.heads} signed heads and now holds {heads}"
            self.report(FindingKind.HEAD_MISSING, seal.first, detail, until=seal.last)
        self.expect_end(seal.last, seal.hash)

    def expect_end(self, last: int, end_hash: bytes) -> None:
        """Say where the chain is known to end now."""
        if self.last < last:
            self._furthest = max(self._furthest, last)
        elif self.last > last:
            self.report(FindingKind.ADDED, last + 1, f"the chain ended with entry {last}", until=self.last)
        elif self._linked and self._hash != end_hash:
            self._rewritten(last)

    def finish(self) -> Sequence[Finding]:
        """Return all findings, the first broken entry first."""
        for start, end in self._gaps.items():
            self.report(FindingKind.MISSING, start, "not there", until=end)
        self._gaps.clear()
        if self._furthest > self.last:
            detail = f"the chain ends with entry {self.last} and is known to have reached {self._furthest}"
            self.report(FindingKind.CUT, self.last + 1, detail, until=self._furthest)
        return sorted(self._findings, key=lambda one: (one.sequence, one.until))

    def _check_texts(self, entry: AuditEntry, texts: Sequence[AuditText]) -> None:
        seen = set()
        for text in texts:
            self.texts += 1
            seen.add(text.name)
            if text_digest(text.value, salt=text.salt) != entry.digests.get(text.name):
                self.report(FindingKind.TEXT_CHANGED, entry.sequence, f"the text {text.name!r} is another one")
        self.withheld += len(entry.digests.keys() - seen)

    def _place_late(self, entry: AuditEntry) -> None:
        for start, end in list(self._gaps.items()):
            if start <= entry.sequence <= end:
                del self._gaps[start]
                if start < entry.sequence:
                    self._gaps[start] = entry.sequence - 1
                if entry.sequence < end:
                    self._gaps[entry.sequence + 1] = end
                self.report(FindingKind.REORDERED, entry.sequence, f"stands behind entry {self.last}")
                return
        self.report(FindingKind.ADDED, entry.sequence, "there is another entry with this number")

    def _check_heads(self, entry: AuditEntry, *, sound: bool) -> None:
        for head in self._heads.pop(entry.sequence, ()):
            if head.hash == entry.hash:
                self._signed = entry.sequence
            elif sound:
                self._rewritten(entry.sequence)
        known = self._anchors.pop(entry.sequence, None)
        if known is not None and known != entry.hash and sound:
            self._rewritten(entry.sequence)

    def _rewritten(self, sequence: int) -> None:
        begin = min(self._signed + 1, sequence)
        detail = f"the chain was known with another hash at entry {sequence}"
        self.report(FindingKind.REWRITTEN, begin, detail, until=sequence)

    def _is_signed(self, key_id: str, message: bytes, signature: bytes, what: str, sequence: int) -> bool:
        good = self._check(key_id, message, signature)
        if good is None:
            self.report(FindingKind.UNKNOWN_KEY, sequence, f"the {what} is signed with the key {key_id!r}")
        elif not good:
            self.report(FindingKind.BAD_SIGNATURE, sequence, f"the {what} is not what was signed")
        return bool(good)


def _is_renumbered(entry: AuditEntry, sequence: int) -> bool:
    return entry_hash(replace(entry, sequence=sequence)) == entry.hash
