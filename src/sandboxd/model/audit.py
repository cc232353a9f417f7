"""The audit's records: what an entry, a signed head and the seal of an export are, and the bytes that stand for them.

These bytes are a public format (docs/audit.md): others verify our chains with nothing but that page. A change here is a
new format with a new name, never another meaning of the old one.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sandboxd.model.ids import ClientId

ENTRY_FORMAT = "sandboxd.audit.entry.v1"
HEAD_FORMAT = "sandboxd.audit.head.v1"
SEAL_FORMAT = "sandboxd.audit.seal.v1"
SYSTEM_CHAIN = ClientId("")
"""The chain of what belongs to no client: platform-wide calls, and callers that nobody knows."""
FIRST_HASH = bytes(32)
"""Stands before the first entry of every chain."""
SALT_BYTES = 16


class AuditKind(enum.Enum):
    """What an entry says."""

    INTENT = "INTENT"
    """Somebody is about to do this. Written before it is begun."""
    OUTCOME = "OUTCOME"
    """How an intent ended."""
    DENIED = "DENIED"
    """Somebody was refused before anything was begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One link of a chain. Holds no personal text: only salted digests of those that lie beside it."""

    chain: ClientId
    """Client whose chain it is; empty for the system's."""
    sequence: int
    """From 1, without gaps."""
    id: str
    time: datetime
    """When it happened, by the clock of the replica that saw it."""
    kind: AuditKind
    action: str
    """`SandboxService/Create`, `SandboxService/Stream.prompt`, `system/…`."""
    role: str
    """Role of the actor; `system` for the service itself, `anonymous` where nobody proved who it is."""
    target: str = ""
    """Resource name, `sandboxes/sbx-…`; empty where there is none."""
    request_id: str = ""
    intent: int = 0
    """Of an OUTCOME: sequence of its intent; else 0."""
    code: str = ""
    """Of OUTCOME and DENIED: name of the gRPC status code."""
    reason: str = ""
    """Stable word for why."""
    count: int = 1
    """How many refusals a DENIED entry stands for."""
    since: datetime | None = None
    """Moment of the first of them, where it stands for several."""
    digests: Mapping[str, bytes] = field(default_factory=dict)
    """Digest of each text by its name: `actor`, `peer`, `freelancer`, `display_name` …"""
    prev_hash: bytes
    """Hash of the entry before."""
    hash: bytes
    """SHA-256 over `prev_hash` and the canonical bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditText:
    """A text beside an entry, with the salt that its digest was made with. Erasing a person removes both."""

    name: str
    value: str
    salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedHead:
    """Where a chain was at a moment, signed with a key that the database does not have."""

    chain: ClientId
    sequence: int
    hash: bytes
    time: datetime
    key_id: str
    signature: bytes

    def message(self) -> bytes:
        """Return what is signed."""
        fields = (HEAD_FORMAT, self.chain, str(self.sequence), self.hash.hex(), moment(self.time), self.key_id)
        return netstrings(fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSeal:
    """The signed end of an export: what it holds, so that nothing can be cut from it."""

    chain: ClientId
    first: int
    """Sequence that it begins with."""
    prev_hash: bytes
    """Hash of the entry before the first."""
    last: int
    """Sequence that it ends with; `first - 1` where it holds none."""
    hash: bytes
    """Hash of the last entry."""
    heads: int
    """How many signed heads it holds."""
    time: datetime
    key_id: str
    signature: bytes

    def message(self) -> bytes:
        """Return what is signed."""
        counts = (str(self.first), self.prev_hash.hex(), str(self.last), self.hash.hex(), str(self.heads))
        return netstrings((SEAL_FORMAT, self.chain, *counts, moment(self.time), self.key_id))


def canonical(entry: AuditEntry) -> bytes:
    """Return the bytes that stand for an entry: its fields as netstrings in a fixed order, hashes left out."""
    fields = [
        ENTRY_FORMAT,
        entry.chain,
        str(entry.sequence),
        entry.id,
        moment(entry.time),
        entry.kind.value,
        entry.action,
        entry.role,
        entry.target,
        entry.request_id,
        str(entry.intent),
        entry.code,
        entry.reason,
        str(entry.count),
        moment(entry.since) if entry.since is not None else "",
        str(len(entry.digests)),
    ]
    for name in sorted(entry.digests):
        fields += [name, entry.digests[name].hex()]
    return netstrings(fields)


def entry_hash(entry: AuditEntry) -> bytes:
    """Return the hash that an entry must have."""
    return hashlib.sha256(entry.prev_hash + canonical(entry)).digest()


def text_digest(text: str, *, salt: bytes) -> bytes:
    """Return what an entry keeps of a text: HMAC-SHA-256 with the text's own salt as the key."""
    return hmac.digest(salt, text.encode(errors="surrogatepass"), "sha256")


def moment(value: datetime) -> str:
    """Write a moment: `2026-11-28T16:00:00.000000Z`, always with six digits.

    Raises:
        ValueError: It is not aware.
    """
    if value.tzinfo is None:
        raise ValueError("a moment must be aware")
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def netstrings(fields: Sequence[str]) -> bytes:
    """Join texts so that no two lists of texts give the same bytes: `length:bytes,` each, length in decimal."""
    encoded = (text.encode(errors="surrogatepass") for text in fields)
    return b"".join(b"%d:%b," % (len(data), data) for data in encoded)


def head_line(head: SignedHead) -> str:
    """Write a head as a line of the export."""
    return json.dumps(
        {
            "chain": head.chain,
            "sequence": head.sequence,
            "hash": head.hash.hex(),
            "time": moment(head.time),
            "key_id": head.key_id,
            "signature": head.signature.hex(),
        },
        separators=(",", ":"),
    )


def read_head_line(line: str) -> SignedHead:
    """Read a line of the export.

    Raises:
        ValueError: It is none.
    """
    try:
        found: dict[str, Any] = json.loads(line)  # Any: JSON
        return SignedHead(
            chain=ClientId(str(found["chain"])),
            sequence=int(found["sequence"]),
            hash=bytes.fromhex(found["hash"]),
            time=datetime.fromisoformat(found["time"]),
            key_id=str(found["key_id"]),
            signature=bytes.fromhex(found["signature"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a signed head") from error
