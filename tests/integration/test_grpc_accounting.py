"""BudgetService and PriceService over a real server: who may do what, what is refused, and that it happens once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from sandboxd.v1 import budget_pb2, price_pb2, usage_pb2
from tests.fakes.api import a_sandbox
from tests.integration.api_world import World, a_world, refused

DAY, MONTH = budget_pb2.BUDGET_PERIOD_DAY, budget_pb2.BUDGET_PERIOD_MONTH
PLATFORM: dict[str, Any] = {"role": "platform", "sub": "platform"}
ADA: dict[str, Any] = {"role": "freelancer", "sub": "ada"}
AUDITOR: dict[str, Any] = {"role": "auditor", "sub": "eye"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        world.units.rows.sandboxes.update({one.id: one for one in (a_sandbox(), a_sandbox("sbx-2", freelancer="bob"))})
        world.units.rows.sandboxes.update({one.id: one for one in (a_sandbox("sbx-9", client="other"),)})
        yield world


def a_budget(**fields: Any) -> budget_pb2.Budget:
    return budget_pb2.Budget(**{"period": DAY, "tokens": 1000} | fields)


def setting(budget: budget_pb2.Budget, *, request_id: str = "request-1") -> budget_pb2.SetBudgetRequest:
    return budget_pb2.SetBudgetRequest(request_id=request_id, budget=budget)


async def set_budget(world: World, budget: budget_pb2.Budget, *, number: int = 1, **caller: Any) -> budget_pb2.Budget:
    call = world.budgets.SetBudget(
        setting(budget, request_id=f"request-{number}"), metadata=world.metadata(**(caller or PLATFORM))
    )
    answer: budget_pb2.Budget = (await call).budget
    return answer


async def test_a_budget_is_set_once_changed_shown_and_removed(world: World) -> None:
    money = usage_pb2.Money(micros=5_000_000, currency="USD")
    made = await set_budget(world, a_budget(money=money, period=MONTH, warn_percents=[90, 50]))
    repeated = await set_budget(world, a_budget(money=money, period=MONTH, warn_percents=[90, 50]))
    money.micros = 7_000_000
    changed = await set_budget(world, a_budget(money=money, period=MONTH), number=2)
    listed = await world.budgets.ListBudgets(budget_pb2.ListBudgetsRequest(), metadata=world.metadata())
    await world.budgets.DeleteBudget(
        budget_pb2.DeleteBudgetRequest(request_id="request-3", name=made.name), metadata=world.metadata(**PLATFORM)
    )
    gone = await refused(
        world.budgets.GetBudget(budget_pb2.GetBudgetRequest(name=made.name), metadata=world.metadata())
    )

    assert made == repeated
    assert (made.client, made.freelancer, made.sandbox, list(made.warn_percents)) == ("acme", "", "", [50, 90])
    assert (changed.name, changed.money.micros, list(changed.warn_percents)) == (made.name, 7_000_000, [80, 95])
    assert list(listed.budgets) == [changed]
    start, end = (made.use.period_start_time.ToDatetime(), made.use.period_end_time.ToDatetime())
    assert (start.day, start.hour, end.day) == (1, 0, 1)
    assert (gone.code, gone.reason) == (StatusCode.NOT_FOUND, "BUDGET_NOT_FOUND")


async def test_the_clients_own_budget_is_the_platforms_and_bounds_those_below_it(world: World) -> None:
    admin: dict[str, Any] = {"role": "client_admin", "sub": "boss"}
    own = await refused(world.budgets.SetBudget(setting(a_budget()), metadata=world.metadata(**admin)))
    made = await set_budget(world, a_budget(tokens=500))
    removing = await refused(
        world.budgets.DeleteBudget(
            budget_pb2.DeleteBudgetRequest(request_id="request-2", name=made.name), metadata=world.metadata(**admin)
        )
    )
    above = await refused(
        world.budgets.SetBudget(
            setting(a_budget(freelancer="ada", tokens=501), request_id="request-5"), metadata=world.metadata(**admin)
        )
    )
    fitting = await set_budget(world, a_budget(freelancer="ada", tokens=500), number=3, **admin)
    monthly = await set_budget(world, a_budget(sandbox="sandboxes/sbx-1", period=MONTH, tokens=9000), number=4, **admin)

    assert (own.code, own.reason) == (StatusCode.PERMISSION_DENIED, "BUDGET_LEVEL_FORBIDDEN")
    assert (removing.code, removing.reason) == (StatusCode.PERMISSION_DENIED, "BUDGET_LEVEL_FORBIDDEN")
    assert (above.code, above.reason) == (StatusCode.INVALID_ARGUMENT, "BUDGET_ABOVE_CLIENT")
    assert (fitting.freelancer, monthly.sandbox) == ("ada", "sandboxes/sbx-1")


async def test_a_freelancer_sees_its_own_budgets_and_those_of_its_sandboxes(world: World) -> None:
    budgets = [
        await set_budget(world, a_budget(**fields), number=number)
        for number, fields in enumerate(
            [
                {},
                {"freelancer": "ada"},
                {"freelancer": "bob"},
                {"sandbox": "sandboxes/sbx-1"},
                {"sandbox": "sandboxes/sbx-2"},
            ]
        )
    ]

    mine = await world.budgets.ListBudgets(budget_pb2.ListBudgetsRequest(), metadata=world.metadata(**ADA))
    all_of_them = await world.budgets.ListBudgets(budget_pb2.ListBudgetsRequest(), metadata=world.metadata(**AUDITOR))
    foreign = await world.budgets.ListBudgets(
        budget_pb2.ListBudgetsRequest(), metadata=world.metadata(client="other", sub="x")
    )
    hidden = [
        (await refused(world.budgets.GetBudget(request, metadata=world.metadata(**ADA)))).reason
        for request in (budget_pb2.GetBudgetRequest(name=budgets[number].name) for number in (0, 2, 4))
    ]
    shown = [
        (await world.budgets.GetBudget(request, metadata=world.metadata(**ADA))).budget.name
        for request in (budget_pb2.GetBudgetRequest(name=budgets[number].name) for number in (1, 3))
    ]

    assert [budget.name for budget in mine.budgets] == [budgets[1].name, budgets[3].name]
    assert len(all_of_them.budgets) == 5
    assert list(foreign.budgets) == []
    assert hidden == ["BUDGET_NOT_FOUND"] * 3
    assert shown == [budgets[1].name, budgets[3].name]


@pytest.mark.parametrize(
    ("budget", "field"),
    [
        (budget_pb2.Budget(period=DAY), "budget.limit"),
        (budget_pb2.Budget(tokens=1), "budget.period"),
        (a_budget(tokens=-1), "budget.tokens"),
        (a_budget(tokens=10**16), "budget.tokens"),
        (a_budget(money=usage_pb2.Money(micros=1, currency="usd")), "budget.money.currency"),
        (a_budget(money=usage_pb2.Money(micros=-1, currency="USD")), "budget.money.micros"),
        (a_budget(freelancer="ada", sandbox="sandboxes/sbx-1"), "budget.sandbox"),
        (a_budget(warn_percents=[101]), "budget.warn_percents[0]"),
        (a_budget(sandbox="nonsense"), "budget.sandbox"),
    ],
)
async def test_a_budget_that_makes_no_sense_is_refused(world: World, budget: budget_pb2.Budget, field: str) -> None:
    error = await refused(world.budgets.SetBudget(setting(budget), metadata=world.metadata(**PLATFORM)))

    assert error.code is StatusCode.INVALID_ARGUMENT
    assert field in error.fields


@pytest.mark.parametrize("sandbox", ["sandboxes/sbx-9", "sandboxes/sbx-none"])
async def test_a_budget_of_a_sandbox_that_is_not_the_clients_is_not_found(world: World, sandbox: str) -> None:
    error = await refused(
        world.budgets.SetBudget(setting(a_budget(sandbox=sandbox)), metadata=world.metadata(**PLATFORM))
    )

    assert (error.code, error.reason) == (StatusCode.NOT_FOUND, "SANDBOX_NOT_FOUND")


async def test_only_the_platform_rebuilds(world: World) -> None:
    request = budget_pb2.RebuildBudgetsRequest(request_id="request-9")
    await set_budget(world, a_budget())

    answer = await world.budgets.RebuildBudgets(request, metadata=world.metadata(**PLATFORM))
    error = await refused(world.budgets.RebuildBudgets(request, metadata=world.metadata()))

    assert (answer.budgets, answer.corrected) == (1, 0)
    assert error.reason == "ROLE_FORBIDDEN"


# --- prices


def stamp(moment: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(moment)
    return made


NOW = datetime(2027, 1, 1, tzinfo=UTC)


def a_price(model: str = "gemini-x", **fields: Any) -> price_pb2.Price:
    rates = [price_pb2.Rates(input=300_000, cached=30_000, output=2_500_000)]
    values: dict[str, Any] = {"model": model, "currency": "USD", "rates": rates, "valid_from": stamp(NOW)}
    return price_pb2.Price(**values | fields)


def adding(price: price_pb2.Price, number: int = 1) -> price_pb2.AddPriceRequest:
    return price_pb2.AddPriceRequest(request_id=f"request-{number}", price=price)


async def test_a_price_is_added_once_ended_and_followed(world: World) -> None:
    metadata = world.metadata(**PLATFORM, client=None)
    first = (await world.prices.AddPrice(adding(a_price()), metadata=metadata)).price
    again = (await world.prices.AddPrice(adding(a_price()), metadata=metadata)).price
    overlapping = await refused(
        world.prices.AddPrice(adding(a_price(valid_from=stamp(NOW + timedelta(days=9))), 2), metadata=metadata)
    )
    end = price_pb2.EndPriceRequest(request_id="request-3", name=first.name, end_time=stamp(NOW + timedelta(days=9)))
    ended = (await world.prices.EndPrice(end, metadata=metadata)).price
    end.request_id = "request-4"
    end.end_time.CopyFrom(stamp(NOW + timedelta(days=20)))
    still_ended = (await world.prices.EndPrice(end, metadata=metadata)).price
    second = (
        await world.prices.AddPrice(adding(a_price(valid_from=stamp(NOW + timedelta(days=9))), 5), metadata=metadata)
    ).price
    listed = await world.prices.ListPrices(price_pb2.ListPricesRequest(page_size=1), metadata=metadata)
    rest = await world.prices.ListPrices(
        price_pb2.ListPricesRequest(page_size=1, page_token=listed.next_page_token), metadata=metadata
    )

    assert first == again
    assert (overlapping.code, overlapping.reason) == (StatusCode.ALREADY_EXISTS, "PRICE_OVERLAPS")
    assert ended.valid_until.ToDatetime(tzinfo=UTC) == NOW + timedelta(days=9)
    assert still_ended == ended
    assert [*listed.prices, *rest.prices] == [ended, second]
    assert rest.next_page_token == ""


async def test_a_price_that_makes_no_sense_is_refused(world: World) -> None:
    metadata = world.metadata(**PLATFORM)
    rates = [price_pb2.Rates(above_prompt_tokens=1, input=1)]
    cases = {
        "price.rates": a_price(rates=rates),
        "price.valid_until": a_price(valid_until=stamp(NOW)),
        "price.currency": a_price(currency="dollars"),
        "price.model": a_price(model="gemini x"),
    }

    for field, price in cases.items():
        error = await refused(world.prices.AddPrice(adding(price), metadata=metadata))
        assert (error.code, field in error.fields) == (StatusCode.INVALID_ARGUMENT, True), field
    unknown = await refused(
        world.prices.EndPrice(price_pb2.EndPriceRequest(request_id="request-1", name="prices/none"), metadata=metadata)
    )
    assert (unknown.code, unknown.reason) == (StatusCode.NOT_FOUND, "PRICE_NOT_FOUND")


@pytest.mark.parametrize("caller", [ADA, AUDITOR, {"role": "client_admin", "sub": "boss"}])
async def test_prices_are_the_platforms(world: World, caller: dict[str, Any]) -> None:
    error = await refused(world.prices.AddPrice(adding(a_price()), metadata=world.metadata(**caller)))

    assert (error.code, error.reason) == (StatusCode.PERMISSION_DENIED, "ROLE_FORBIDDEN")
