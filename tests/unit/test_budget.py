"""Budgets without a database: periods, words, the memory of refusals, and that the CLI's error is known again."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from sandboxd.gateway.refusals import Refusal, RefusalReason
from sandboxd.gateway.spent import LIMIT, SECONDS, SpentBudgets
from sandboxd.model.budget import (
    TOKENS,
    BudgetLevel,
    BudgetNotice,
    BudgetNoticeCode,
    BudgetPeriod,
    show_amount,
    thresholds_of,
)
from sandboxd.model.events import Notice, TurnCompleted
from sandboxd.model.session import StopReason
from sandboxd.model.usage import Reservation
from sandboxd.monitor.ports import CallRefusal, CallRefused
from sandboxd.stream.dialect import TurnBill
from sandboxd.stream.failures import failure_from_rpc
from sandboxd.stream.outcome import conclude
from tests.contract.usage_world import a_call, an_identity


@pytest.mark.parametrize(
    ("period", "at", "start", "end"),
    [
        (BudgetPeriod.DAY, datetime(2026, 11, 30, 23, 59, tzinfo=UTC), date(2026, 11, 30), date(2026, 12, 1)),
        (BudgetPeriod.MONTH, datetime(2026, 11, 30, 23, 59, tzinfo=UTC), date(2026, 11, 1), date(2026, 12, 1)),
        (BudgetPeriod.MONTH, datetime(2026, 12, 31, tzinfo=UTC), date(2026, 12, 1), date(2027, 1, 1)),
        (BudgetPeriod.MONTH, datetime(2028, 2, 29, tzinfo=UTC), date(2028, 2, 1), date(2028, 3, 1)),
        (
            BudgetPeriod.DAY,
            datetime(2026, 12, 1, 1, tzinfo=timezone(timedelta(hours=2))),
            date(2026, 11, 30),
            date(2026, 12, 1),
        ),
    ],
)
def test_a_period_begins_and_ends_at_midnight_utc(period: BudgetPeriod, at: datetime, start: date, end: date) -> None:
    assert (period.start(at), period.end(start)) == (start, end)


@pytest.mark.parametrize(
    ("amount", "unit", "shown"),
    [
        (0, "USD", "0.00 USD"),
        (1, "USD", "0.000001 USD"),
        (12_500_000, "EUR", "12.50 EUR"),
        (-1_234_560_000, "USD", "-1,234.56 USD"),
        (1_000_000, TOKENS, "1,000,000 tokens"),
    ],
)
def test_amounts_are_written_for_people(amount: int, unit: str, shown: str) -> None:
    assert show_amount(amount, unit) == shown


def test_thresholds_are_put_in_order_and_have_a_usual_value() -> None:
    assert (thresholds_of([95, 50, 95]), thresholds_of([])) == ((50, 95), (80, 95))


def a_notice(code: BudgetNoticeCode) -> BudgetNotice:
    return BudgetNotice(
        code=code,
        level=BudgetLevel.FREELANCER,
        period=BudgetPeriod.MONTH,
        unit="USD",
        limit=5_000_000,
        spent=4_900_000,
        resets=date(2026, 12, 1),
        model="gemini-2.5-flash",
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [(BudgetNoticeCode.BUDGET_SPENT, "BUDGET_SPENT"), (BudgetNoticeCode.PRICE_UNKNOWN, "PRICE_UNKNOWN")],
)
def test_a_refusal_comes_back_from_the_cli_as_an_error_that_must_not_be_repeated(
    code: BudgetNoticeCode, reason: str
) -> None:
    refusal = Refusal(reason=RefusalReason(code.value), message=a_notice(code).message)

    error = failure_from_rpc({"code": refusal.code, "message": refusal.body().decode()})

    assert refusal.code == 403
    assert "retry-after" not in refusal.headers()
    assert "RetryInfo" not in json.dumps(json.loads(refusal.body()))
    assert (error.reason, error.retryable, error.http_status) == (reason, False, 403)
    assert error.message == a_notice(code).message


def test_a_turn_says_what_happened_to_a_budget_before_it_ends() -> None:
    notice = Notice(code="BUDGET_SPENT", message="It is spent.")

    stop, bodies = conclude(StopReason.ERROR, said=False, bill=TurnBill(notices=(notice,)))

    assert stop is StopReason.ERROR
    assert bodies[0] == notice
    assert isinstance(bodies[-1], TurnCompleted)


def test_a_refusal_is_remembered_for_a_moment_and_for_calls_that_are_as_large() -> None:
    now = [0.0]
    spent = SpentBudgets(monotonic=lambda: now[0])
    call = a_call(an_identity())
    smaller = replace(call, reserved=Reservation(prompt_tokens=1, output_tokens=1))
    other_model = replace(call, model="gemini-2.5-pro")
    refused = CallRefused(reason=CallRefusal.BUDGET_SPENT, message="It is spent.")
    spent.remember(call, refused)

    found = [spent.find(one) for one in (call, smaller, other_model, a_call(an_identity()))]
    now[0] = SECONDS
    later = spent.find(call)

    assert found == [refused, None, None, None]
    assert later is None


def test_the_memory_of_refusals_is_bounded() -> None:
    spent = SpentBudgets(monotonic=lambda: 0.0)
    first = a_call(an_identity())
    refused = CallRefused(reason=CallRefusal.BUDGET_SPENT)
    spent.remember(first, refused)
    for _ in range(LIMIT):
        spent.remember(a_call(an_identity()), refused)

    assert spent.find(first) is None
