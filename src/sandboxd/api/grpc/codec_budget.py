"""Budgets between the model and the contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Final

from sandboxd.api.grpc.names import sandbox_id, sandbox_name, timestamp
from sandboxd.manager.budgets import BudgetWish
from sandboxd.model.budget import MAX_LIMIT, TOKENS, BudgetPeriod, BudgetStatus, thresholds_of
from sandboxd.model.errors import FieldViolation
from sandboxd.model.ids import FreelancerId
from sandboxd.v1 import budget_pb2 as pb
from sandboxd.v1 import usage_pb2

PERIODS: Final[Mapping[BudgetPeriod, pb.BudgetPeriod.ValueType]] = {
    BudgetPeriod.DAY: pb.BUDGET_PERIOD_DAY,
    BudgetPeriod.MONTH: pb.BUDGET_PERIOD_MONTH,
}
_PERIODS_BACK: Final = {number: period for period, number in PERIODS.items()}
_CURRENCY_LETTERS: Final = 3


def budget_name(budget: str) -> str:
    """Name a budget."""
    return f"budgets/{budget}"


def decode_budget(message: pb.Budget) -> BudgetWish:
    """Decode a budget that somebody wants to have; `budget_rules` have checked it."""
    money = message.WhichOneof("limit") == "money"
    return BudgetWish(
        freelancer=FreelancerId(message.freelancer) if message.freelancer else None,
        sandbox=sandbox_id(message.sandbox) if message.sandbox else None,
        period=_PERIODS_BACK[message.period],
        unit=message.money.currency if money else TOKENS,
        limit=message.money.micros if money else message.tokens,
        thresholds=thresholds_of(message.warn_percents),
    )


def budget_rules(message: pb.SetBudgetRequest) -> Iterator[FieldViolation]:
    """Check what protovalidate's rules cannot say."""
    budget = message.budget
    if budget.freelancer and budget.sandbox:
        yield FieldViolation(field="budget.sandbox", description="must not be set together with freelancer")
    if budget.tokens > MAX_LIMIT:
        yield FieldViolation(field="budget.tokens", description=f"must be at most {MAX_LIMIT}")
    if budget.WhichOneof("limit") == "money":
        money = budget.money
        if not 0 <= money.micros <= MAX_LIMIT:
            yield FieldViolation(field="budget.money.micros", description=f"must be from 0 to {MAX_LIMIT}")
        letters = money.currency.isascii() and money.currency.isalpha() and money.currency.isupper()
        if len(money.currency) != _CURRENCY_LETTERS or not letters:
            yield FieldViolation(field="budget.money.currency", description="must be an ISO 4217 code, such as USD")


def encode_budget(status: BudgetStatus) -> pb.Budget:
    """Encode a budget as it stands."""
    budget, target = status.budget, status.budget.target
    encoded = pb.Budget(
        name=budget_name(budget.id),
        client=target.client,
        freelancer=target.freelancer or "",
        sandbox=sandbox_name(target.sandbox) if target.sandbox else "",
        period=PERIODS[target.period],
        warn_percents=budget.thresholds,
        use=pb.BudgetUse(
            reserved=status.reserved,
            spent=status.spent,
            remaining=status.remaining,
            period_start_time=timestamp(_midnight(status.period_start)),
            period_end_time=timestamp(_midnight(status.period_end)),
        ),
        create_time=timestamp(budget.create_time),
        update_time=timestamp(budget.update_time),
    )
    if target.unit == TOKENS:
        encoded.tokens = budget.limit
    else:
        encoded.money.CopyFrom(usage_pb2.Money(micros=budget.limit, currency=target.unit))
    return encoded


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
