"""The erasure of a client or a freelancer, and its proof: what was found, what was erased, what is kept and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, NewType

from sandboxd.model.ids import ClientId, FreelancerId, SandboxId

ErasureId = NewType("ErasureId", str)

DOCUMENT_VERSION = 1
ERASED_MARK: Final = "erased"
"""`state_reason` of a sandbox whose files and texts are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureItem:
    """What became of one kind of data."""

    erased: int = 0
    kept: int = 0
    why: str = ""
    """Why it is kept, or what was erased of it, for people."""

    @property
    def found(self) -> int:
        """How much there was."""
        return self.erased + self.kept


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingFiles:
    """The files of the sandbox that is being erased now, as they were counted before: a crash counts nothing twice."""

    sandbox: SandboxId
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A signature of the service, and what checks it."""

    key_id: str
    signature: bytes
    """Ed25519, of the document's bytes."""
    public_key: str
    """PEM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One erasure; complete when it has a document."""

    id: ErasureId
    client: ClientId
    freelancer: FreelancerId | None = None
    """None: the whole client."""
    begin_time: datetime
    end_time: datetime | None = None
    items: Mapping[str, ErasureItem] = field(default_factory=dict)
    """By kind."""
    pending: PendingFiles | None = None
    document: bytes = b""
    """The proof: JSON, exactly as it was signed."""
    signature: Signature | None = None

    @property
    def name(self) -> str:
        """Resource name."""
        return f"clients/{self.client}/erasures/{self.id}"

    @property
    def account(self) -> str:
        """Resource name of whom it erases."""
        return f"clients/{self.client}" + (f"/freelancers/{self.freelancer}" if self.freelancer else "")

    def add(self, kind: str, *, erased: int = 0, why: str = "") -> Erasure:
        """Return this erasure with more of a kind erased."""
        before = self.items.get(kind, ErasureItem())
        item = replace(before, erased=before.erased + erased, why=why or before.why)
        return replace(self, items={**self.items, kind: item})

    def keep(self, kind: str, *, kept: int, why: str) -> Erasure:
        """Return this erasure with so much of a kind kept."""
        before = self.items.get(kind, ErasureItem())
        return replace(self, items={**self.items, kind: replace(before, kept=kept, why=why)})


def write_document(erasure: Erasure) -> bytes:
    """Write the proof: canonical JSON, so that whoever has the facts can write the same bytes."""
    if erasure.end_time is None:
        raise ValueError("an erasure that has not ended proves nothing")
    document = {
        "version": DOCUMENT_VERSION,
        "erasure": erasure.name,
        "account": erasure.account,
        "begin_time": erasure.begin_time.astimezone(UTC).isoformat(),
        "end_time": erasure.end_time.astimezone(UTC).isoformat(),
        "items": [
            {"kind": kind, "found": item.found, "erased": item.erased, "kept": item.kept, "why": item.why}
            for kind, item in sorted(erasure.items.items())
        ],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
