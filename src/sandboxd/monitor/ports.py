"""What usage accounting needs from the outside: the ledger, and the store of prices. Implemented by `persistence`.

Contract suite: `tests/contract/test_usage_ledger.py`; it is what these docstrings mean where they are unclear.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from sandboxd.model.budget import BudgetId, BudgetNotice
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId, SessionId, TurnId
from sandboxd.model.money import Money
from sandboxd.model.pricing import Price, PriceBook
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.model.usage import (
    CallError,
    GatewayId,
    ModelMethod,
    Reservation,
    TokenCounts,
    UsageEvent,
    UsageEventId,
    UsageState,
)

MAX_PAGE_SIZE = 1000
"""Most entries of one page of any list here; a larger wish is answered with this many."""
MAX_SUMMARY_ROWS = 10_000
"""Most sums of one summary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStart:
    """A call that is about to be sent to the model API."""

    id: UsageEventId
    gateway: GatewayId
    identity: SandboxIdentity
    """From the checked sandbox token, never from the request."""
    session_hint: SessionId | None
    """Session that the CLI's placeholder key names. A hint: it may be wrong, foreign or made up."""
    method: ModelMethod
    model: str
    reserved: Reservation
    reserved_cost: Money | None = None
    """The reservation at the model's price; None where the model has none. Budgets in money reserve it."""
    start_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedCall:
    """The call may be made; its row is in the ledger."""

    session: SessionId | None
    turn: TurnId | None
    traceparent: str = ""
    """What the turn keeps of its caller's trace (`model.trace.turn_context`); empty where there is none."""


class CallRefusal(enum.Enum):
    """Why the ledger does not let a call through."""

    INCARNATION_ENDED = "INCARNATION_ENDED"
    """That life of the sandbox has ended or was revoked, or never was; its tokens are worth nothing."""
    SUSPENDED = "SUSPENDED"
    """The client or the freelancer is suspended, or deleted."""
    BUDGET_SPENT = "BUDGET_SPENT"
    """A budget of the client, the freelancer or the sandbox does not hold the reservation."""
    PRICE_UNKNOWN = "PRICE_UNKNOWN"
    """A budget in money applies, and the model has no price in its currency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRefused:
    """The call must not be made; it left no row, and where a budget was the reason, a notice."""

    reason: CallRefusal
    message: str = ""
    """For the person at the CLI, in plain words; empty for the standard text of the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallProgress:
    """What is known of a call that still runs."""

    tokens: TokenCounts
    """The last usage that the API reported: it replaces what the row has."""
    model_version: str | None
    first_byte_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How a call ended."""

    state: UsageState
    """SETTLED or ESTIMATED."""
    tokens: TokenCounts
    model_version: str | None
    http_status: int | None
    finish_reason: str | None
    block_reason: str | None
    cost: Money | None
    price_id: str | None
    first_byte_time: datetime | None
    end_time: datetime
    error_reason: CallError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Which events are meant: all conditions that are set must hold."""

    client: ClientId | None = None
    freelancer: FreelancerId | None = None
    sandbox: SandboxId | None = None
    session: SessionId | None = None
    turn: TurnId | None = None
    model: str | None = None
    """Exact name, as the request named it."""
    states: frozenset[UsageState] = frozenset()
    """Empty for every state."""
    start_from: datetime | None = None
    """Calls that began at this moment or later."""
    start_before: datetime | None = None
    """Calls that began before this moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsagePage:
    """A part of a list of events."""

    events: Sequence[UsageEvent]
    next_after: UsageEventId | None
    """Give it as `after` for the next page; None at the end of the list."""


class UsageDimension(enum.Enum):
    """What a summary can be split by."""

    CLIENT = "client"
    FREELANCER = "freelancer"
    SANDBOX = "sandbox"
    SESSION = "session"
    MODEL = "model"
    DAY = "day"
    """Day of the call's start in UTC, as `2026-11-23`."""
    CLASS = "class"
    """Class of tokens; made of sums without it (`monitor/classes.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSummaryRow:
    """The sum of all calls that share one value of each dimension."""

    key: tuple[str, ...]
    """Values of the dimensions, in the order asked for; the empty text where a call has none (no session)."""
    calls: int
    """All calls: failed, open and estimated ones too."""
    open_calls: int
    estimated_calls: int
    failed_calls: int
    """Calls that have an error reason."""
    unpriced_calls: int
    """Calls that ended with tokens and without a price: the costs do not hold them."""
    tokens: TokenCounts
    """Sums of what the rows hold; an open call counts with its last progress."""
    costs: Sequence[Money]
    """One amount a currency, ordered by currency; empty where nothing was priced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageCursor:
    """How far somebody has seen what changes in the ledger: numbers of transactions, as moments are in no order."""

    transaction: int
    event: str
    """Last call that was seen of that transaction's; empty for none."""
    notices: int
    """Transaction before which all notices were seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaidNotice:
    """A notice, and what it is about."""

    budget: BudgetId
    freelancer: FreelancerId
    sandbox: SandboxId
    notice_time: datetime
    notice: BudgetNotice


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageChanges:
    """News of the ledger."""

    events: Sequence[tuple[UsageEvent, UsageCursor]]
    """With the cursor to go on after each."""
    notices: Sequence[SaidNotice]
    cursor: UsageCursor
    """To go on after all of them."""
    more: bool
    """True where there is more to read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSummary:
    """Sums by the dimensions that were asked for, and the sum of all."""

    rows: Sequence[UsageSummaryRow]
    """Ordered by cost (all currencies' micro-units added: an order, not an amount) and then by total tokens, largest
    first; then by key, ascending."""
    total: UsageSummaryRow
    """Over every event that matches, those of rows beyond the limit too. Its key is empty."""


class UsageLedger(Protocol):
    """The one record of what was used. Every method either commits what it says or raises.

    Raises (every method):
        DatabaseUnavailableError: The ledger does not answer, or not in time. What a writing method wanted may or may
            not have been committed; each may be repeated as it is.
    """

    async def open_call(self, call: CallStart) -> OpenedCall | CallRefused:
        """Write a row in state OPEN (zero tokens, no cost), if the caller's life of the sandbox still lives.

        One transaction, best one statement. The incarnation must exist, belong to the identity's sandbox, client and
        freelancer, and have no end time (revoking is ending). The row gets the hinted session if that session exists,
        is not deleted and belongs to the identity's sandbox; else none. It gets that session's open turn if the turn
        is QUEUED or RUNNING; else none (a call that begins while a turn is FINISHING is not added to it any more,
        because its sum is being journalled).

        What the call reserves is counted, in the same transaction, in every budget that applies to it (client,
        freelancer, sandbox; day and month of `start_time`). Where one of them does not hold it, nothing is counted, and
        the call is refused; a call that reserves nothing never is. `settle_call` moves the same sums: away what was
        reserved, and in what was used.

        Repeating it with the same id, while the row exists, writes nothing and answers as the first time.
        """
        ...

    async def record_progress(self, event: UsageEventId, progress: CallProgress) -> None:
        """Replace tokens, model version and first-byte time of an OPEN row; do nothing to any other or to none."""
        ...

    async def settle_call(self, event: UsageEventId, settlement: Settlement) -> bool:
        """End a call's row: set all fields of the settlement, once.

        An OPEN row takes it. So does a row that is ESTIMATED with GATEWAY_LOST (the sweep thought its gateway dead,
        and now the gateway reports), unless the settlement is GATEWAY_LOST itself. Every other row is final.
        After the commit the adapter wakes who waits for usage of the sandbox (NOTIFY `sandboxd_usage`, payload the
        sandbox id).

        Returns:
            True where the row changed; False where it was final already, which a repeated settlement is.

        Raises:
            UsageEventNotFoundError: There is no such row.
        """
        ...

    async def beat(self, gateway: GatewayId) -> None:
        """Note, by the ledger's own clock, that this gateway lives; the first beat makes it known."""
        ...

    async def orphaned_calls(self, *, silent_for: timedelta, limit: int) -> Sequence[UsageEvent]:
        """List OPEN rows, oldest first, whose gateway has been silent that long (or for ever) by the ledger's clock."""
        ...

    async def get_event(self, event: UsageEventId) -> UsageEvent:
        """Return one row.

        Raises:
            UsageEventNotFoundError: There is no such row.
        """
        ...

    async def list_events(
        self, where: UsageFilter, *, page_size: int, after: UsageEventId | None = None, newest_first: bool = False
    ) -> UsagePage:
        """List rows ordered by id, which is by the start of the call; `after` is the last id of the page before."""
        ...

    async def summarise(
        self, where: UsageFilter, *, by: Sequence[UsageDimension], limit: int = MAX_SUMMARY_ROWS
    ) -> UsageSummary:
        """Sum rows by the dimensions; at most `limit` sums (never more than `MAX_SUMMARY_ROWS`) and the total."""
        ...

    async def turn_usage(self, turn: TurnId) -> Sequence[UsageEvent]:
        """Return all rows of a turn ordered by id, the OPEN ones too; the caller counts and awaits those."""
        ...

    async def changes(self, where: UsageFilter, *, after: UsageCursor | None, limit: int) -> UsageChanges:
        """Return calls that were settled or corrected after a cursor, and what was said about budgets since.

        Without a cursor nothing is returned but the cursor of the present moment. Nothing is missed: what a transaction
        wrote that is still on its way comes after it has ended. A call that changed again since comes once, as it is.

        Raises:
            InvalidRequestError: The cursor is not one of this database (violation `cursor`).
        """
        ...

    async def turn_notices(self, turn: TurnId) -> Sequence[BudgetNotice]:
        """Return what was said about budgets because of calls of a turn, in the order in which it happened."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayReport:
    """How a gateway is, for operators."""

    version: str
    circuit: str
    """`closed`, `open` or `half_open`."""
    open_calls: int
    spooled: int
    """Settlements that wait for the ledger."""


class GatewayReports(Protocol):
    """Where gateways say how they are, and hear what operators want."""

    async def report(self, gateway: GatewayId, report: GatewayReport) -> datetime | None:
        """Replace the gateway's last report. A gateway that never beat has none.

        Returns:
            When an operator last asked it to close its circuit; None for never.

        Raises:
            DatabaseUnavailableError: The database does not answer.
        """
        ...


class PriceBookStore(Protocol):
    """Where the prices are kept."""

    async def load(self) -> PriceBook:
        """Return every price, ended ones too: late settlements are priced by the moment their call began."""
        ...

    async def add(self, prices: Sequence[Price]) -> None:
        """Add prices whose ids are new; a price whose id is there is left as it is, so that seeding can be repeated."""
        ...

    async def end(self, price_id: str, *, at: datetime) -> None:
        """Let a price end, where it has no end yet; do nothing to one that is unknown."""
        ...
