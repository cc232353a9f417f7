"""Budgets on a real PostgreSQL: reserved before, counted after, refused in time, and always what the ledger says."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from sandboxd.manager.budget_ports import BudgetFilter
from sandboxd.model.accounting_errors import BudgetNotFoundError
from sandboxd.model.budget import (
    TOKENS,
    BudgetId,
    BudgetNoticeCode,
    BudgetPeriod,
    BudgetStatus,
    BudgetTarget,
)
from sandboxd.model.money import Money
from sandboxd.model.session import TurnState
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.model.usage import (
    NO_TOKENS,
    NOTHING_RESERVED,
    CallError,
    Reservation,
    TokenCounts,
    UsageState,
)
from sandboxd.monitor.list_prices import list_prices
from sandboxd.monitor.ports import CallRefusal, CallRefused, CallStart, OpenedCall, UsageFilter
from sandboxd.persistence.budgets import PostgresBudgetRepository
from sandboxd.persistence.engine import Database
from sandboxd.persistence.prices import PostgresPriceBookStore, PostgresPriceRepository
from tests.contract.postgres_worlds import PostgresLedgerWorld
from tests.contract.usage_world import NOON, a_call, a_session, a_settlement, a_turn, an_id, an_identity
from tests.eventually import eventually

SPENT = TokenCounts(prompt=80, output=20, total=100)
RESERVED = Reservation(prompt_tokens=50, output_tokens=150)
"""200 tokens."""


@pytest.fixture
def world(database: Database) -> PostgresLedgerWorld:
    return PostgresLedgerWorld(database=database)


async def given_budget(
    database: Database,
    of: SandboxIdentity,
    limit: int,
    *,
    level: str = "client",
    period: BudgetPeriod = BudgetPeriod.DAY,
    unit: str = TOKENS,
    thresholds: tuple[int, ...] = (80, 95),
    at: datetime = NOON,
) -> BudgetId:
    target = BudgetTarget(
        client=of.client,
        freelancer=of.freelancer if level == "freelancer" else None,
        sandbox=of.sandbox if level == "sandbox" else None,
        period=period,
        unit=unit,
    )
    async with database.begin() as connection:
        budgets = PostgresBudgetRepository(connection)
        made = await budgets.put(target, limit=limit, thresholds=thresholds, new=BudgetId(an_id("bdg")), at=at)
    return made.id


async def status(database: Database, budget: BudgetId, of: SandboxIdentity, *, at: datetime = NOON) -> BudgetStatus:
    async with database.begin() as connection:
        return await PostgresBudgetRepository(connection).get(budget, client=of.client, at=at)


async def recount(database: Database, of: SandboxIdentity, *, at: datetime = NOON) -> tuple[int, int]:
    async with database.begin() as connection:
        return await PostgresBudgetRepository(connection).recount(of.client, at=at)


def sums(found: BudgetStatus) -> tuple[int, int, int]:
    return found.reserved, found.spent, found.remaining


def a_small_call(
    identity: SandboxIdentity, *, start_time: datetime = NOON, **more: Any
) -> CallStart:  # Any: fields of a call
    return replace(a_call(identity, start_time=start_time), reserved=RESERVED, **more)


def spent_in_money(micros: int, currency: str = "USD") -> Money:
    return Money(micros=micros, currency=currency)


async def test_a_call_is_reserved_before_and_counted_after(world: PostgresLedgerWorld, database: Database) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    budgets = [
        await given_budget(database, identity, 1000, level=level, period=period)
        for level in ("client", "freelancer", "sandbox")
        for period in BudgetPeriod
    ]
    call = a_small_call(identity)

    await world.ledger.open_call(call)
    open_sums = {sums(await status(database, budget, identity)) for budget in budgets}
    await world.ledger.settle_call(call.id, a_settlement(tokens=SPENT))
    await world.ledger.settle_call(call.id, a_settlement(tokens=SPENT))  # a repetition

    assert open_sums == {(200, 0, 800)}
    assert {sums(await status(database, budget, identity)) for budget in budgets} == {(0, 100, 900)}


async def test_a_call_that_is_settled_after_midnight_counts_on_the_day_and_month_it_began(
    world: PostgresLedgerWorld, database: Database
) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    evening, morning = datetime(2026, 11, 30, 23, 59, tzinfo=UTC), datetime(2026, 12, 1, 0, 1, tzinfo=UTC)
    day = await given_budget(database, identity, 1000, at=evening)
    month = await given_budget(database, identity, 1000, period=BudgetPeriod.MONTH, at=evening)
    call, next_call = a_small_call(identity, start_time=evening), a_small_call(identity, start_time=morning)

    await world.ledger.open_call(call)
    await world.ledger.open_call(next_call)
    await world.ledger.settle_call(call.id, replace(a_settlement(tokens=SPENT), end_time=morning))

    for budget in (day, month):
        assert sums(await status(database, budget, identity, at=evening)) == (0, 100, 900)
        assert sums(await status(database, budget, identity, at=morning)) == (200, 0, 800)
    assert (await status(database, month, identity, at=morning)).period_end == date(2027, 1, 1)


@pytest.mark.parametrize("level", ["client", "freelancer", "sandbox"])
async def test_a_call_that_does_not_fit_is_refused_and_nothing_is_counted(
    world: PostgresLedgerWorld, database: Database, level: str
) -> None:
    identity, session, turn = an_identity(), a_session(), a_turn()
    await world.given_incarnation(identity)
    await world.given_session(session, of=identity)
    await world.given_turn(turn, session=session, state=TurnState.RUNNING)
    wide = await given_budget(database, identity, 10_000, period=BudgetPeriod.MONTH)
    tight = await given_budget(database, identity, 399, level=level)
    first = a_small_call(identity)
    await world.ledger.open_call(first)

    refused = [await world.ledger.open_call(a_small_call(identity, session_hint=session)) for _ in range(2)]
    free = await world.ledger.open_call(replace(a_small_call(identity), reserved=NOTHING_RESERVED))

    events = await world.ledger.list_events(UsageFilter(sandbox=identity.sandbox), page_size=10)
    notices = await world.ledger.turn_notices(turn)
    assert isinstance(refused[0], CallRefused)
    assert refused[0].reason is CallRefusal.BUDGET_SPENT
    assert f"The {level}'s budget for this day is spent: 199 tokens of 399 tokens is left" in refused[0].message
    assert "2026-11-24 (UTC)" in refused[0].message
    assert refused[1] == refused[0]
    assert free == OpenedCall(session=None, turn=None)
    assert len(events.events) == 2
    assert sums(await status(database, tight, identity)) == (200, 0, 199)
    assert sums(await status(database, wide, identity)) == (200, 0, 9800)
    assert [(notice.code, notice.message) for notice in notices] == [
        (BudgetNoticeCode.BUDGET_SPENT, refused[0].message)
    ]


async def test_a_budget_holds_for_its_own_client_freelancer_and_sandbox_only(
    world: PostgresLedgerWorld, database: Database
) -> None:
    mine = an_identity()
    colleague = an_identity(client=mine.client)
    other_sandbox = an_identity(client=mine.client, freelancer=mine.freelancer)
    foreign = an_identity()
    for identity in (mine, colleague, other_sandbox, foreign):
        await world.given_incarnation(identity)
    await given_budget(database, mine, 0, level="sandbox")
    await given_budget(database, colleague, 0, level="freelancer")

    answers = {
        name: isinstance(await world.ledger.open_call(a_small_call(identity)), CallRefused)
        for name, identity in (("mine", mine), ("colleague", colleague), ("other", other_sandbox), ("foreign", foreign))
    }

    assert answers == {"mine": True, "colleague": True, "other": False, "foreign": False}


async def test_a_threshold_is_said_once_in_a_period_and_again_after_the_limit_was_raised(
    world: PostgresLedgerWorld, database: Database
) -> None:
    identity, session, turn = an_identity(), a_session(), a_turn()
    await world.given_incarnation(identity)
    await world.given_session(session, of=identity)
    await world.given_turn(turn, session=session, state=TurnState.RUNNING)
    await given_budget(database, identity, 1000)

    async def spend(times: int, *, start_time: datetime = NOON) -> list[int]:
        for _ in range(times):
            call = a_small_call(identity, session_hint=session, start_time=start_time)
            await world.ledger.open_call(call)
            await world.ledger.settle_call(call.id, a_settlement(tokens=SPENT))
        return [notice.threshold for notice in await world.ledger.turn_notices(turn)]

    assert await spend(7) == []
    assert await spend(1) == [80]
    assert await spend(1) == [80]
    await given_budget(database, identity, 2000)
    assert await spend(7) == [80, 80]
    assert await spend(3) == [80, 80, 95]
    assert await spend(9, start_time=NOON + timedelta(days=1)) == [80, 80, 95]
    assert await spend(7, start_time=NOON + timedelta(days=1)) == [80, 80, 95, 80]
    last = (await world.ledger.turn_notices(turn))[-1]
    assert last.message == "The client's budget for this day is 80 % spent: 1,600 tokens of 2,000 tokens."


async def test_a_budget_in_money_reserves_the_price_and_refuses_what_has_none(
    world: PostgresLedgerWorld, database: Database
) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    budget = await given_budget(database, identity, 1_000_000, unit="USD")
    dear = a_small_call(identity, reserved_cost=spent_in_money(600_000))

    await world.ledger.open_call(dear)
    too_much = await world.ledger.open_call(a_small_call(identity, reserved_cost=spent_in_money(400_001)))
    unpriced = await world.ledger.open_call(a_small_call(identity, model="gemini-none"))
    other_currency = await world.ledger.open_call(a_small_call(identity, reserved_cost=spent_in_money(1, "EUR")))
    reserved = sums(await status(database, budget, identity))
    await world.ledger.settle_call(dear.id, a_settlement(cost=spent_in_money(250_000)))

    assert isinstance(too_much, CallRefused)
    assert isinstance(unpriced, CallRefused)
    assert isinstance(other_currency, CallRefused)
    assert "0.40 USD of 1.00 USD is left" in too_much.message
    assert (unpriced.reason, other_currency.reason) == (CallRefusal.PRICE_UNKNOWN, CallRefusal.PRICE_UNKNOWN)
    assert "gemini-none has no price" in unpriced.message
    assert reserved == (600_000, 0, 400_000)
    assert sums(await status(database, budget, identity)) == (0, 250_000, 750_000)


async def test_a_budget_that_is_set_later_counts_what_the_period_has_used_already(
    world: PostgresLedgerWorld, database: Database
) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    yesterday = NOON - timedelta(days=1)
    old, ended, running = (a_small_call(identity, start_time=at) for at in (yesterday, NOON, NOON))
    for call in (old, ended, running):
        await world.ledger.open_call(call)
    await world.ledger.settle_call(ended.id, a_settlement(tokens=SPENT))

    day = await given_budget(database, identity, 1000)
    month = await given_budget(database, identity, 1000, period=BudgetPeriod.MONTH)
    await world.ledger.settle_call(old.id, a_settlement(tokens=SPENT))

    assert sums(await status(database, day, identity)) == (200, 100, 700)
    assert sums(await status(database, month, identity)) == (200, 200, 600)
    assert await recount(database, identity) == (2, 0)


async def test_a_hundred_calls_at_once_never_reserve_more_than_there_is(
    world: PostgresLedgerWorld, database: Database
) -> None:
    identities = [an_identity(client="crowded", freelancer=f"f{number % 3}") for number in range(10)]
    for identity in identities:
        await world.given_incarnation(identity)
    budget = await given_budget(database, identities[0], 3_100)
    await given_budget(database, identities[0], 2_000, level="freelancer")
    await given_budget(database, identities[0], 500, level="sandbox")
    calls = [a_small_call(identities[number % 10]) for number in range(100)]

    answers = await asyncio.gather(*(world.ledger.open_call(call) for call in calls))

    opened = [call for call, answer in zip(calls, answers, strict=True) if isinstance(answer, OpenedCall)]
    of_sandbox = sum(call.identity == identities[0] for call in opened)
    assert sums(await status(database, budget, identities[0])) == (200 * len(opened), 0, 3_100 - 200 * len(opened))
    assert len(opened) == 15
    assert of_sandbox <= 2
    assert await recount(database, identities[0]) == (3, 0)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_after_any_history_the_sums_are_what_the_ledger_says(
    world: PostgresLedgerWorld, database: Database, seed: int
) -> None:
    """Calls of four sandboxes at once, with everything that gateways do: refused, repeated, lost, swept, corrected,
    settled twice; while budgets are set and recounted."""
    dice = random.Random(seed)
    identities = [an_identity(client=f"busy-{seed}", freelancer=f"f{number % 2}") for number in range(4)]
    for identity in identities:
        await world.given_incarnation(identity)
    moments = [datetime(2026, 11, 30, 23, 59, tzinfo=UTC), datetime(2026, 12, 1, 0, 1, tzinfo=UTC)]

    async def live(fate: random.Random) -> None:
        identity, moment = fate.choice(identities), fate.choice(moments)
        tokens = TokenCounts(prompt=fate.randrange(150), output=fate.randrange(150))
        tokens = replace(tokens, total=tokens.prompt + tokens.output)
        cost = spent_in_money(tokens.total * 3) if fate.random() < 0.9 else None
        call = a_small_call(identity, start_time=moment, reserved_cost=spent_in_money(600))
        answer = await world.ledger.open_call(call)
        if fate.random() < 0.3:
            answer = await world.ledger.open_call(call)
        if isinstance(answer, CallRefused) or fate.random() < 0.2:
            return
        lost = a_settlement(state=UsageState.ESTIMATED, error_reason=CallError.GATEWAY_LOST, cost=cost)
        if fate.random() < 0.4:
            await world.ledger.settle_call(call.id, lost)
        if fate.random() < 0.3:
            return
        nothing = a_settlement(tokens=NO_TOKENS, cost=None, error_reason=CallError.NOT_FORWARDED)
        end = nothing if fate.random() < 0.2 else a_settlement(tokens=tokens, cost=cost)
        await asyncio.gather(*(world.ledger.settle_call(call.id, end) for _ in range(fate.choice((1, 1, 2)))))
        await world.ledger.settle_call(call.id, lost)

    async def administer(fate: random.Random) -> None:
        for level in ("client", "freelancer", "sandbox"):
            for unit, limit in ((TOKENS, 6_000), ("USD", 20_000)):
                await given_budget(
                    database,
                    fate.choice(identities),
                    fate.randrange(limit),
                    level=level,
                    unit=unit,
                    period=fate.choice([*BudgetPeriod]),
                    at=moments[0],
                )
        await recount(database, identities[0], at=moments[1])

    fates = [random.Random(dice.random()) for _ in range(120)]
    await asyncio.gather(
        *(live(fate) for fate in fates[:60]),
        *(administer(fate) for fate in fates[60:63]),
        *(live(fate) for fate in fates[63:]),
    )

    looked_at, wrong = await recount(database, identities[0], at=moments[1])
    assert looked_at > 6
    assert wrong == 0


async def test_a_recount_mends_what_somebody_broke(world: PostgresLedgerWorld, database: Database) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    budget = await given_budget(database, identity, 1000)
    await world.ledger.open_call(a_small_call(identity))
    async with database.raw() as connection:
        await connection.execute("UPDATE budget_accounts SET reserved = 990, spent = -5")

    answer = await recount(database, identity)

    assert answer == (1, 1)
    assert sums(await status(database, budget, identity)) == (200, 0, 800)


async def test_a_deleted_budget_limits_nothing_and_another_clients_is_not_found(
    world: PostgresLedgerWorld, database: Database
) -> None:
    identity, foreign = an_identity(), an_identity()
    await world.given_incarnation(identity)
    budget = await given_budget(database, identity, 0)
    await world.ledger.open_call(a_small_call(identity))

    async with database.begin() as connection:
        with pytest.raises(BudgetNotFoundError):
            await PostgresBudgetRepository(connection).delete(budget, client=foreign.client)
    async with database.begin() as connection:
        await PostgresBudgetRepository(connection).delete(budget, client=identity.client)

    assert isinstance(await world.ledger.open_call(a_small_call(identity)), OpenedCall)
    with pytest.raises(BudgetNotFoundError):
        await status(database, budget, identity)


async def test_a_budget_that_is_set_while_a_call_is_being_written_waits_and_counts_it(
    world: PostgresLedgerWorld, database: Database
) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    call = a_small_call(identity)
    insert = """
        INSERT INTO usage_events (id, gateway, client, freelancer, sandbox, incarnation, method, model, state,
            reserved_prompt_tokens, reserved_output_tokens, start_time)
        VALUES ($1, 'g', $2, $3, $4, $5, 'generateContent', 'm', 'OPEN', 50, 150, $6)
    """
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

    async with database.raw() as connection:
        writing = connection.transaction()
        await writing.start()
        await connection.execute(
            insert,
            call.id,
            identity.client,
            identity.freelancer,
            identity.sandbox,
            identity.incarnation,
            NOON,
        )
        setting = asyncio.create_task(given_budget(database, identity, 1000))

        async def waits() -> bool:
            return setting.done() or await connection.fetchval(waiting) == 1

        await eventually(waits, what="the budget waits for the call")
        set_too_early = setting.done()
        await writing.commit()
    budget = await setting
    await world.ledger.settle_call(call.id, a_settlement(tokens=SPENT))

    assert not set_too_early
    assert sums(await status(database, budget, identity)) == (0, 100, 900)


async def test_budgets_are_listed_page_by_page_by_whose_they_are(
    world: PostgresLedgerWorld, database: Database
) -> None:
    mine, colleague = an_identity(), an_identity()
    colleague = replace(colleague, client=mine.client)
    for identity in (mine, colleague):
        await world.given_incarnation(identity)
    made = [
        await given_budget(database, identity, 10, level=level)
        for identity in (mine, colleague)
        for level in ("freelancer", "sandbox")
    ]
    async with database.begin() as connection:
        budgets = PostgresBudgetRepository(connection)

        async def listed(**where: Any) -> list[BudgetId]:  # Any: fields of the filter
            found, token = list[BudgetId](), ""
            while True:
                page = await budgets.list(
                    BudgetFilter(client=mine.client, **where), at=NOON, page_size=1, page_token=token
                )
                found += [one.budget.id for one in page.items]
                token = page.next_token
                if not token:
                    return found

        assert await listed() == made
        assert await listed(freelancer=mine.freelancer) == made[:2]
        assert await listed(sandbox=colleague.sandbox) == made[3:]


async def test_prices_are_changed_in_a_transaction_and_read_by_the_gateway(database: Database) -> None:
    store, price = PostgresPriceBookStore(database), list_prices()[0]
    async with database.begin() as connection:
        prices = PostgresPriceRepository(connection)
        await prices.add(price)
        await prices.set_end(price.id, at=NOON)
        found = await prices.all(for_update=True)

    assert list(found) == [replace(price, valid_until=NOON)]
    assert list((await store.load()).prices) == list(found)
