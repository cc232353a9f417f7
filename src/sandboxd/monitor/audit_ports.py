"""The audit as other rooms see it: the trail that records what is done, and the stores and keys behind it."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from sandboxd.model.audit import AuditEntry, AuditKind, AuditText, SignedHead
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import ClientId, FreelancerId

SYSTEM_ROLE = "system"
"""Role of the service itself: the sweep, recovery, retention."""
ANONYMOUS_ROLE = "anonymous"
"""Role of a caller that did not prove who it is."""
MAX_AUDIT_PAGE = 1000
OUTSIDERS = ("platform", SYSTEM_ROLE)
"""Roles whose people are not the client's: who they are stays on record when the client is deleted."""


class AuditUnavailableError(UnavailableError):
    """What was asked for was not begun, because it could not be put on record."""

    reason = "AUDIT_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__(
            "Nothing was done: the audit trail cannot be written now. Try again in a moment.",
            retry_after=timedelta(seconds=1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """What somebody is about to do, or was refused: who, what, on what, from where."""

    client: ClientId
    """In whose chain it is recorded; empty for the system's."""
    role: str
    action: str
    """`SandboxService/Create`; from a closed set."""
    actor: str = ""
    """Who. A personal text: the entry holds its digest only."""
    peer: str = ""
    """From where: the address without the port. A personal text."""
    target: str = ""
    """Resource name; holds no freelancer's id."""
    request_id: str = ""
    freelancer: FreelancerId | None = None
    """Whom the texts are about, where it is known."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Other personal texts of the request by name, for example `display_name`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended."""

    code: str
    """Name of the gRPC status code."""
    reason: str = ""
    target: str = ""
    """What it was done on, where that was not known before: the sandbox that was created."""


OK = Outcome(code="OK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """An intent that is durable; to be concluded."""

    deed: Deed
    sequence: int


class AuditTrail(Protocol):
    """Puts on record what is done and what is refused."""

    async def intend(self, deed: Deed, *, timeout: timedelta) -> Intent:
        """Make an intent durable; only then begin.

        Raises:
            AuditUnavailableError: It could not be written in time. Do not begin.
        """
        ...

    def conclude(self, intent: Intent, outcome: Outcome) -> None:
        """Record how an intent ended. Returns at once; it is written soon, and as long as this process lives."""
        ...

    def deny(self, deed: Deed, outcome: Outcome) -> None:
        """Record a refusal. Returns at once. Many like it become one entry that counts them."""
        ...

    async def settle(self, *, timeout: timedelta) -> None:
        """Wait until everything that was said so far is written; returns at the end of the time in any case."""
        ...

    async def erase(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        """Remove every text about a person, in its client's chain; the chain stays valid. Safe to repeat.

        Without a person: every text of the client's chain but who of the platform has acted, and from where.

        Call it before the rows of the person's sandboxes are deleted: they tell which entries are about them.

        Returns:
            How many texts were removed.

        Raises:
            DatabaseUnavailableError: Nothing, or not everything, was removed.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftText:
    """A text to be kept beside an entry."""

    text: AuditText
    person: str
    """Freelancer whom it is about; empty where only the target can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An entry that has no place in its chain yet."""

    entry: AuditEntry
    """With sequence 0 and empty hashes."""
    texts: Sequence[DraftText] = ()
    replica: str = ""
    """Of an INTENT: the life of the process that has to conclude it."""
    only_if_open: bool = False
    """Of an OUTCOME: write it only if its intent has none yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIntent:
    """An intent without an outcome."""

    chain: ClientId
    sequence: int
    action: str
    role: str
    target: str
    request_id: str


class Placed(enum.Enum):
    """What became of a draft that got no number."""

    BUSY = "busy"
    """Its chain is held by somebody else now: try again."""
    NEEDLESS = "needless"
    """Its intent has an outcome already."""


class AuditStore(Protocol):
    """Where entries are appended. Every method has a deadline and may raise DatabaseUnavailableError."""

    async def append(
        self, drafts: Sequence[Draft], *, repeated: bool = False, patient: bool = False
    ) -> Sequence[int | Placed]:
        """Give drafts their places, in order, all in one transaction; answers the sequence of each.

        Each chain is locked once. A chain that somebody else holds is left out, its drafts are BUSY, unless `patient`.
        `repeated` says that an earlier append of some of them may have been committed: those are not written twice.
        """
        ...

    async def abandoned(self, *, limit: int) -> Sequence[OpenIntent]:
        """Open intents of replicas that do not live any more."""
        ...

    async def erase(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        """Delete the texts about a person, or without one all but those of OUTSIDERS; answers how many."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """An entry with what is left of its texts."""

    entry: AuditEntry
    texts: Sequence[AuditText] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries of a chain; what is set must all match."""

    start_time: datetime | None = None
    end_time: datetime | None = None
    actor: str = ""
    action: str = ""
    """An action, or the beginning of one up to a `/` or `.`."""
    target: str = ""
    """A resource name: entries on it and on what is in it."""
    request_id: str = ""
    kinds: frozenset[AuditKind] = frozenset()
    codes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainHead:
    """Where a chain ends."""

    chain: ClientId
    sequence: int
    hash: bytes


class AuditReader(Protocol):
    """Reads chains."""

    async def head(self, chain: ClientId) -> ChainHead:
        """Where a chain ends; sequence 0 where it has not begun."""
        ...

    async def records(
        self, chain: ClientId, where: AuditFilter, *, after: int, limit: int, newest_first: bool = False
    ) -> Sequence[AuditRecord]:
        """Entries beyond a sequence number, ordered by it. Newest first, `after` 0 begins at the end."""
        ...

    async def heads(self, chain: ClientId, *, after: int, until: int) -> Sequence[SignedHead]:
        """Signed heads with `after < sequence <= until`, ordered by sequence."""
        ...

    async def unsigned(self, key_id: str, *, limit: int) -> Sequence[ChainHead]:
        """Ends of chains that are not signed with this key yet."""
        ...

    async def add_heads(self, heads: Sequence[SignedHead]) -> None:
        """Keep signed heads; those that are there stay as they are."""
        ...


class AuditKeys(Protocol):
    """The signing key, and the public keys that are trusted here."""

    @property
    def key_id(self) -> str:
        """Id of the signing key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Sign with it."""
        ...

    def check(self, key_id: str, message: bytes, signature: bytes) -> bool | None:
        """Tell whether a signature is good; None where the key is not trusted."""
        ...

    def public_keys(self) -> Mapping[str, bytes]:
        """Trusted public keys as PEM, by their ids."""
        ...


class HeadExport(Protocol):
    """Where signed heads are kept outside the database."""

    async def append(self, heads: Sequence[SignedHead]) -> None:
        """Add heads, durably. Raises OSError."""
        ...

    def read(self, chain: ClientId) -> AsyncIterator[SignedHead]:
        """All heads of a chain that are there."""
        ...
