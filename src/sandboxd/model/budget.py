"""A budget: how much a client, a freelancer or a sandbox may spend in a day or a month, and what is said about it.

Pure. A call reserves what it may use at most before it is made, and is counted at what it used after; both on the day
and month (UTC) in which it began, whenever it is settled. The sums are kept by the database (`persistence/budgets.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final, NewType

from sandboxd.model.ids import ClientId, FreelancerId, SandboxId

BudgetId = NewType("BudgetId", str)
"""Id of one budget: `bdg-` and 26 ULID characters."""

TOKENS: Final = "TOKENS"
"""Unit of a budget that counts tokens; every other unit is an ISO 4217 code, and the budget counts its micro-units."""
DEFAULT_THRESHOLDS: Final = (80, 95)
"""Percent of the limit at which a budget warns, where whoever set it said nothing."""
MAX_THRESHOLDS: Final = 5
MAX_LIMIT: Final = 10**15
"""Largest limit: a thousand million units of a currency, or 10^15 tokens."""
_MICRO: Final = 1_000_000


class BudgetPeriod(enum.Enum):
    """The span after which a budget begins anew, in UTC."""

    DAY = "DAY"
    MONTH = "MONTH"

    def start(self, at: datetime) -> date:
        """First day of the period that holds a moment."""
        day = at.astimezone(UTC).date()
        return day if self is BudgetPeriod.DAY else day.replace(day=1)

    def end(self, start: date) -> date:
        """First day of the next period."""
        if self is BudgetPeriod.DAY:
            return start + timedelta(days=1)
        return (start.replace(day=1) + timedelta(days=32)).replace(day=1)


class BudgetLevel(enum.Enum):
    """Whose spending a budget limits. The order is the order in which their sums are locked."""

    CLIENT = "client"
    FREELANCER = "freelancer"
    SANDBOX = "sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetTarget:
    """What a budget limits. There is one budget for each target."""

    client: ClientId
    freelancer: FreelancerId | None = None
    """This freelancer only; None where the budget is the client's or a sandbox's."""
    sandbox: SandboxId | None = None
    """This sandbox only."""
    period: BudgetPeriod
    unit: str
    """`TOKENS`, or the code of a currency."""

    @property
    def level(self) -> BudgetLevel:
        """Whose spending it limits."""
        if self.sandbox is not None:
            return BudgetLevel.SANDBOX
        return BudgetLevel.CLIENT if self.freelancer is None else BudgetLevel.FREELANCER


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit on what may be spent."""

    id: BudgetId
    target: BudgetTarget
    limit: int
    """Micro-units of the currency, or tokens. 0 refuses every call that could cost anything."""
    thresholds: tuple[int, ...] = DEFAULT_THRESHOLDS
    """Percent of the limit at which a notice is given, once each in a period; ascending."""
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatus:
    """A budget, and where it stands in its present period."""

    budget: Budget
    period_start: date
    reserved: int
    """What the calls that are on their way may use at most."""
    spent: int
    """What ended calls used."""

    @property
    def remaining(self) -> int:
        """What new calls may still reserve; never below 0."""
        return max(0, self.budget.limit - self.spent - self.reserved)

    @property
    def period_end(self) -> date:
        """First day on which it begins anew."""
        return self.budget.target.period.end(self.period_start)


class BudgetNoticeCode(enum.Enum):
    """What is said about a budget."""

    BUDGET_LOW = "BUDGET_LOW"
    """A threshold was passed; calls go on."""
    BUDGET_SPENT = "BUDGET_SPENT"
    """A call was refused: what it may use at most does not fit into what is left."""
    PRICE_UNKNOWN = "PRICE_UNKNOWN"
    """A call was refused: a budget in money holds, and the model has no price in its currency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetNotice:
    """Something that people should know about a budget."""

    code: BudgetNoticeCode
    level: BudgetLevel
    period: BudgetPeriod
    unit: str
    limit: int
    spent: int
    reserved: int = 0
    threshold: int = 0
    """Percent that was passed; 0 for a refusal."""
    resets: date
    """First day on which the budget begins anew."""
    model: str = ""
    """Model of the refused call."""

    @property
    def message(self) -> str:
        """The notice in plain words; it goes to the CLI's user too, so it names no other person."""
        whose = {
            BudgetLevel.CLIENT: "client's",
            BudgetLevel.FREELANCER: "freelancer's",
            BudgetLevel.SANDBOX: "sandbox's",
        }
        name = f"The {whose[self.level]} budget for this {self.period.value.lower()}"
        limit = show_amount(self.limit, self.unit)
        match self.code:
            case BudgetNoticeCode.BUDGET_LOW:
                return f"{name} is {self.threshold} % spent: {show_amount(self.spent, self.unit)} of {limit}."
            case BudgetNoticeCode.PRICE_UNKNOWN:
                return (
                    f"{name} is in {self.unit}, and the model {self.model} has no price in it, so its calls cannot be "
                    "counted and are not made. Choose another model, or ask the platform to add a price."
                )
            case BudgetNoticeCode.BUDGET_SPENT:
                left = show_amount(max(0, self.limit - self.spent - self.reserved), self.unit)
                return (
                    f"{name} is spent: {left} of {limit} is left, less than this call may use. "
                    f"It begins anew on {self.resets.isoformat()} (UTC). Ask the client's administrator."
                )


def thresholds_of(wished: Sequence[int]) -> tuple[int, ...]:
    """Put thresholds in order; none means the usual ones."""
    return tuple(sorted(set(wished))) or DEFAULT_THRESHOLDS


def show_amount(amount: int, unit: str) -> str:
    """Write an amount for people: `12.50 USD`, `1,000 tokens`."""
    if unit == TOKENS:
        return f"{amount:,} tokens"
    whole, micros = divmod(abs(amount), _MICRO)
    digits = f"{micros:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole:,}.{digits} {unit}"
