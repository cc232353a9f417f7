"""The ledger's promise, against the fake and against PostgreSQL: the same suite."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.model.errors import UsageEventNotFoundError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.money import Money
from sandboxd.model.pricing import Price, Rates
from sandboxd.model.session import TurnState
from sandboxd.model.usage import NO_TOKENS, CallError, TokenCounts, UsageEventId, UsageState
from sandboxd.monitor.ports import (
    CallProgress,
    CallRefusal,
    CallRefused,
    OpenedCall,
    UsageDimension,
    UsageFilter,
)
from tests.contract.usage_world import (
    NOON,
    SOME_TOKENS,
    FakeLedgerWorld,
    LedgerWorld,
    a_call,
    a_gateway,
    a_session,
    a_settlement,
    a_turn,
    an_id,
    an_identity,
)


@pytest.fixture(params=["fake", "postgres"])
def world(request: pytest.FixtureRequest) -> LedgerWorld:
    if request.param == "fake":
        return FakeLedgerWorld()
    made: LedgerWorld = request.getfixturevalue("postgres_ledger_world")
    return made


# --- opening


async def test_an_opened_call_is_a_row_in_state_open_with_nothing_used(world: LedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    call = a_call(identity)

    opened = await world.ledger.open_call(call)

    row = await world.ledger.get_event(call.id)
    assert opened == OpenedCall(session=None, turn=None)
    assert (row.state, row.tokens, row.cost, row.price_id) == (UsageState.OPEN, NO_TOKENS, None, None)
    assert (row.client, row.freelancer, row.sandbox) == (identity.client, identity.freelancer, identity.sandbox)
    assert (row.incarnation, row.gateway, row.model, row.method) == (
        identity.incarnation,
        call.gateway,
        call.model,
        call.method,
    )
    assert (row.reserved, row.start_time, row.end_time) == (call.reserved, call.start_time, None)


async def test_opening_the_same_call_twice_writes_one_row_and_answers_the_same(world: LedgerWorld) -> None:
    identity, session, turn = an_identity(), a_session(), a_turn()
    await world.given_incarnation(identity)
    await world.given_session(session, of=identity)
    await world.given_turn(turn, session=session, state=TurnState.RUNNING)
    call = a_call(identity, session_hint=session)
    first = await world.ledger.open_call(call)
    await world.given_turn(turn, session=session, state=TurnState.COMPLETED)

    second = await world.ledger.open_call(call)

    page = await world.ledger.list_events(UsageFilter(client=identity.client), page_size=10)
    assert first == second == OpenedCall(session=session, turn=turn)
    assert len(page.events) == 1


async def test_a_call_from_an_ended_incarnation_is_refused_and_leaves_no_row(world: LedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    await world.end_incarnation(identity.incarnation)
    call = a_call(identity)

    refused = await world.ledger.open_call(call)

    assert isinstance(refused, CallRefused)
    assert refused.reason is CallRefusal.INCARNATION_ENDED
    with pytest.raises(UsageEventNotFoundError):
        await world.ledger.get_event(call.id)


@pytest.mark.parametrize("freelancer", [False, True])
async def test_a_call_of_who_is_suspended_is_refused_and_leaves_no_row(world: LedgerWorld, freelancer: bool) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    await world.suspend(identity, freelancer=freelancer)
    call = a_call(identity)

    refused = await world.ledger.open_call(call)

    assert isinstance(refused, CallRefused)
    assert refused.reason is CallRefusal.SUSPENDED
    with pytest.raises(UsageEventNotFoundError):
        await world.ledger.get_event(call.id)


@pytest.mark.parametrize("wrong", ["client", "freelancer", "sandbox", "incarnation"])
async def test_a_call_whose_identity_does_not_fit_its_incarnation_is_refused(world: LedgerWorld, wrong: str) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    match wrong:
        case "client":
            forged = replace(identity, client=ClientId("somebody-else"))
        case "freelancer":
            forged = replace(identity, freelancer=FreelancerId("somebody-else"))
        case "sandbox":
            forged = replace(identity, sandbox=SandboxId(an_id("sbx")))
        case _:
            forged = replace(identity, incarnation=IncarnationId(an_id("inc")))

    refused = await world.ledger.open_call(a_call(forged))

    assert isinstance(refused, CallRefused)


@pytest.mark.parametrize("state", [TurnState.QUEUED, TurnState.RUNNING])
async def test_a_call_joins_the_open_turn_of_the_hinted_session(world: LedgerWorld, state: TurnState) -> None:
    identity, session, turn = an_identity(), a_session(), a_turn()
    await world.given_incarnation(identity)
    await world.given_session(session, of=identity)
    await world.given_turn(turn, session=session, state=state, traceparent="00-trace")
    call = a_call(identity, session_hint=session)

    opened = await world.ledger.open_call(call)
    repeated = await world.ledger.open_call(call)

    assert opened == repeated == OpenedCall(session=session, turn=turn, traceparent="00-trace")


@pytest.mark.parametrize("state", [TurnState.FINISHING, TurnState.COMPLETED])
async def test_a_call_does_not_join_a_turn_whose_sum_is_being_made(world: LedgerWorld, state: TurnState) -> None:
    identity, session = an_identity(), a_session()
    await world.given_incarnation(identity)
    await world.given_session(session, of=identity)
    await world.given_turn(a_turn(), session=session, state=state, traceparent="00-trace")

    opened = await world.ledger.open_call(a_call(identity, session_hint=session))

    assert opened == OpenedCall(session=session, turn=None)


async def test_a_hint_that_is_foreign_deleted_or_made_up_is_ignored(world: LedgerWorld) -> None:
    mine, other = an_identity(), an_identity()
    await world.given_incarnation(mine)
    await world.given_incarnation(other)
    foreign, deleted, made_up = a_session(), a_session(), a_session()
    await world.given_session(foreign, of=other)
    await world.given_turn(a_turn(), session=foreign, state=TurnState.RUNNING)
    await world.given_session(deleted, of=mine, deleted=True)

    answers = [
        await world.ledger.open_call(a_call(mine, session_hint=hint)) for hint in (foreign, deleted, made_up, None)
    ]

    assert answers == [OpenedCall(session=None, turn=None)] * 4


# --- settling


async def test_a_settled_call_keeps_every_field_of_its_settlement(world: LedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    call = a_call(identity)
    await world.ledger.open_call(call)
    settlement = a_settlement()

    changed = await world.ledger.settle_call(call.id, settlement)

    row = await world.ledger.get_event(call.id)
    assert changed is True
    assert (row.state, row.tokens, row.cost, row.price_id) == (
        UsageState.SETTLED,
        SOME_TOKENS,
        Money(micros=1234, currency="USD"),
        "price-1",
    )
    assert (row.http_status, row.finish_reason, row.block_reason) == (200, "STOP", None)
    assert (row.model, row.model_version) == ("gemini-2.5-flash", "gemini-2.5-flash-001")
    assert (row.first_byte_time, row.end_time, row.error_reason) == (
        settlement.first_byte_time,
        settlement.end_time,
        None,
    )


async def test_a_second_settlement_changes_nothing_and_says_so(world: LedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    call = a_call(identity)
    await world.ledger.open_call(call)
    await world.ledger.settle_call(call.id, a_settlement())
    before = await world.ledger.get_event(call.id)

    changed = await world.ledger.settle_call(
        call.id, a_settlement(tokens=NO_TOKENS, error_reason=CallError.CLIENT_GONE)
    )

    assert changed is False
    assert await world.ledger.get_event(call.id) == before


async def test_a_gateway_that_was_thought_dead_may_still_report_what_it_knows(world: LedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    call = a_call(identity)
    await world.ledger.open_call(call)
    lost = a_settlement(state=UsageState.ESTIMATED, error_reason=CallError.GATEWAY_LOST)
    await world.ledger.settle_call(call.id, lost)

    swept_again = await world.ledger.settle_call(call.id, lost)
    reported = await world.ledger.settle_call(call.id, a_settlement(tokens=TokenCounts(prompt=1, total=1)))

    row = await world.ledger.get_event(call.id)
    assert (swept_again, reported) == (False, True)
    assert (row.state, row.tokens.total, row.error_reason) == (UsageState.SETTLED, 1, None)


async def test_an_estimate_of_the_gateway_itself_is_final(world: LedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    call = a_call(identity)
    await world.ledger.open_call(call)
    await world.ledger.settle_call(
        call.id, a_settlement(state=UsageState.ESTIMATED, error_reason=CallError.CLIENT_GONE)
    )

    changed = await world.ledger.settle_call(call.id, a_settlement())

    assert changed is False


async def test_settling_a_call_that_was_never_opened_is_an_error(world: LedgerWorld) -> None:
    with pytest.raises(UsageEventNotFoundError):
        await world.ledger.settle_call(UsageEventId(an_id("use")), a_settlement())


async def test_a_call_without_a_price_has_no_cost_and_is_flagged(world: LedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    call = a_call(identity)
    await world.ledger.open_call(call)

    await world.ledger.settle_call(call.id, a_settlement(cost=None, price_id=None))

    row = await world.ledger.get_event(call.id)
    summary = await world.ledger.summarise(UsageFilter(client=identity.client), by=[])
    assert (row.cost, row.unpriced) == (None, True)
    assert (summary.total.unpriced_calls, list(summary.total.costs)) == (1, [])


# --- progress and orphans


async def test_progress_replaces_what_an_open_row_holds(world: LedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    call = a_call(identity)
    await world.ledger.open_call(call)

    for output in (3, 7):
        tokens = TokenCounts(prompt=100, output=output, total=100 + output)
        await world.ledger.record_progress(
            call.id, CallProgress(tokens=tokens, model_version="gemini-x", first_byte_time=NOON)
        )

    row = await world.ledger.get_event(call.id)
    assert (row.state, row.tokens.output, row.model_version) == (UsageState.OPEN, 7, "gemini-x")
    assert row.first_byte_time == NOON


async def test_late_progress_does_not_touch_a_settled_row_or_make_one(world: LedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    call = a_call(identity)
    await world.ledger.open_call(call)
    await world.ledger.settle_call(call.id, a_settlement())
    late = CallProgress(tokens=TokenCounts(total=1), model_version=None, first_byte_time=None)
    unknown = UsageEventId(an_id("use"))

    await world.ledger.record_progress(call.id, late)
    await world.ledger.record_progress(unknown, late)

    assert (await world.ledger.get_event(call.id)).tokens == SOME_TOKENS
    with pytest.raises(UsageEventNotFoundError):
        await world.ledger.get_event(unknown)


async def test_open_calls_of_a_silent_gateway_are_orphans_and_those_of_a_living_one_are_not(
    world: LedgerWorld,
) -> None:
    identity, living, dead = an_identity(), a_gateway(), a_gateway()
    await world.given_incarnation(identity)
    of_living, of_dead, settled = (a_call(identity, gateway=gateway) for gateway in (living, dead, dead))
    for call in (of_living, of_dead, settled):
        await world.ledger.open_call(call)
    await world.ledger.settle_call(settled.id, a_settlement())
    await world.ledger.beat(living)

    orphans = await world.ledger.orphaned_calls(silent_for=timedelta(hours=1), limit=100)
    everything = await world.ledger.orphaned_calls(silent_for=timedelta(0), limit=100)

    mine = {of_living.id, of_dead.id, settled.id}
    assert [row.id for row in orphans if row.id in mine] == [of_dead.id]
    assert [row.id for row in everything if row.id in mine] == [of_living.id, of_dead.id]
    assert len(await world.ledger.orphaned_calls(silent_for=timedelta(0), limit=1)) == 1


async def test_a_second_beat_keeps_a_gateway_alive(world: LedgerWorld) -> None:
    identity, gateway = an_identity(), a_gateway()
    await world.given_incarnation(identity)
    call = a_call(identity, gateway=gateway)
    await world.ledger.open_call(call)

    await world.ledger.beat(gateway)
    await world.ledger.beat(gateway)

    orphans = await world.ledger.orphaned_calls(silent_for=timedelta(minutes=1), limit=100)
    assert call.id not in {row.id for row in orphans}


# --- reading


async def test_a_list_is_walked_page_by_page_in_both_orders(world: LedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    calls = [a_call(identity, start_time=NOON + timedelta(seconds=second)) for second in range(5)]
    for call in reversed(calls):
        await world.ledger.open_call(call)
    where = UsageFilter(sandbox=identity.sandbox)

    for newest_first in (False, True):
        seen: list[UsageEventId] = []
        after: UsageEventId | None = None
        while True:
            page = await world.ledger.list_events(where, page_size=2, after=after, newest_first=newest_first)
            seen += [row.id for row in page.events]
            after = page.next_after
            if after is None:
                break

        expected = [call.id for call in calls]
        assert seen == (expected[::-1] if newest_first else expected)


async def test_every_filter_selects_what_it_says(world: LedgerWorld) -> None:
    identity, other = an_identity(), an_identity()
    session, turn = a_session(), a_turn()
    for one in (identity, other):
        await world.given_incarnation(one)
    await world.given_session(session, of=identity)
    await world.given_turn(turn, session=session, state=TurnState.RUNNING)
    early = a_call(identity, session_hint=session, start_time=NOON)
    late = a_call(identity, model="gemini-2.5-pro", start_time=NOON + timedelta(hours=1))
    foreign = a_call(other, start_time=NOON)
    for call in (early, late, foreign):
        await world.ledger.open_call(call)
    await world.ledger.settle_call(early.id, a_settlement())
    mine = UsageFilter(client=identity.client)

    async def found(where: UsageFilter) -> set[UsageEventId]:
        return {row.id for row in (await world.ledger.list_events(where, page_size=100)).events}

    assert await found(mine) == {early.id, late.id}
    assert await found(UsageFilter(freelancer=identity.freelancer)) == {early.id, late.id}
    assert await found(UsageFilter(sandbox=other.sandbox)) == {foreign.id}
    assert await found(UsageFilter(session=session)) == {early.id}
    assert await found(UsageFilter(turn=turn)) == {early.id}
    assert await found(replace(mine, model="gemini-2.5-pro")) == {late.id}
    assert await found(replace(mine, states=frozenset({UsageState.OPEN}))) == {late.id}
    assert await found(replace(mine, start_from=NOON + timedelta(hours=1))) == {late.id}
    assert await found(replace(mine, start_before=NOON + timedelta(hours=1))) == {early.id}
    assert await found(UsageFilter(client=identity.client, sandbox=other.sandbox)) == set()


async def test_a_summary_adds_every_class_by_dimension_and_in_total(world: LedgerWorld) -> None:
    identity = an_identity()
    await world.given_incarnation(identity)
    flash = [a_call(identity), a_call(identity)]
    pro = a_call(identity, model="gemini-2.5-pro", start_time=NOON + timedelta(days=1))
    still_open = a_call(identity, model="gemini-2.5-pro")
    for call in (*flash, pro, still_open):
        await world.ledger.open_call(call)
    await world.ledger.settle_call(flash[0].id, a_settlement())
    await world.ledger.settle_call(
        flash[1].id, a_settlement(state=UsageState.ESTIMATED, error_reason=CallError.CLIENT_GONE)
    )
    await world.ledger.settle_call(
        pro.id, a_settlement(cost=Money(micros=9_000_000_000_000, currency="EUR"), tokens=TokenCounts(total=1))
    )
    where = UsageFilter(client=identity.client)

    by_model = await world.ledger.summarise(where, by=[UsageDimension.MODEL])
    by_day_and_model = await world.ledger.summarise(where, by=[UsageDimension.DAY, UsageDimension.MODEL])
    limited = await world.ledger.summarise(where, by=[UsageDimension.MODEL], limit=1)

    pro_sum, flash_sum = by_model.rows
    assert (pro_sum.key, flash_sum.key) == (("gemini-2.5-pro",), ("gemini-2.5-flash",))
    assert flash_sum.tokens == SOME_TOKENS + SOME_TOKENS
    assert (flash_sum.calls, flash_sum.estimated_calls, flash_sum.failed_calls, flash_sum.open_calls) == (2, 1, 1, 0)
    assert (pro_sum.calls, pro_sum.open_calls) == (2, 1)
    assert list(by_model.total.costs) == [
        Money(micros=9_000_000_000_000, currency="EUR"),
        Money(micros=2468, currency="USD"),
    ]
    assert (by_model.total.key, by_model.total.calls) == ((), 4)
    assert [row.key for row in by_day_and_model.rows] == [
        ("2026-11-24", "gemini-2.5-pro"),
        ("2026-11-23", "gemini-2.5-flash"),
        ("2026-11-23", "gemini-2.5-pro"),
    ]
    assert ([row.key for row in limited.rows], limited.total.calls) == ([("gemini-2.5-pro",)], 4)


@pytest.mark.parametrize("dimension", [one for one in UsageDimension if one is not UsageDimension.CLASS])
async def test_each_dimension_splits_by_its_own_value(world: LedgerWorld, dimension: UsageDimension) -> None:
    identity, session = an_identity(), a_session()
    await world.given_incarnation(identity)
    await world.given_session(session, of=identity)
    await world.ledger.open_call(a_call(identity, session_hint=session))
    await world.ledger.open_call(a_call(identity))

    summary = await world.ledger.summarise(UsageFilter(sandbox=identity.sandbox), by=[dimension])

    keys = {row.key for row in summary.rows}
    expected = {
        UsageDimension.CLIENT: {(identity.client,)},
        UsageDimension.FREELANCER: {(identity.freelancer,)},
        UsageDimension.SANDBOX: {(identity.sandbox,)},
        UsageDimension.SESSION: {(session,), ("",)},
        UsageDimension.MODEL: {("gemini-2.5-flash",)},
        UsageDimension.DAY: {("2026-11-23",)},
    }
    assert keys == expected[dimension]


async def test_a_summary_of_nothing_is_a_total_of_zero(world: LedgerWorld) -> None:
    summary = await world.ledger.summarise(UsageFilter(client=ClientId("nobody")), by=[UsageDimension.MODEL])

    assert list(summary.rows) == []
    assert (summary.total.calls, summary.total.tokens, list(summary.total.costs)) == (0, NO_TOKENS, [])


async def test_the_usage_of_a_turn_is_all_its_calls_the_open_ones_too(world: LedgerWorld) -> None:
    identity, session, turn = an_identity(), a_session(), a_turn()
    await world.given_incarnation(identity)
    await world.given_session(session, of=identity)
    await world.given_turn(turn, session=session, state=TurnState.RUNNING)
    calls = [a_call(identity, session_hint=session) for _ in range(2)]
    for call in (*calls, a_call(identity)):
        await world.ledger.open_call(call)
    await world.ledger.settle_call(calls[0].id, a_settlement())

    rows = await world.ledger.turn_usage(turn)

    assert [row.id for row in rows] == [call.id for call in calls]
    assert [row.state for row in rows] == [UsageState.SETTLED, UsageState.OPEN]


# --- prices


async def test_prices_are_added_once_kept_exactly_and_end_once(world: LedgerWorld) -> None:
    price = Price(
        id=an_id("prc"),
        model="gemini-2.5-pro*",
        currency="USD",
        rates=(
            Rates(input=1_250_000, cached=125_000, output=10_000_000),
            Rates(above_prompt_tokens=200_000, input=2_500_000, cached=250_000, output=15_000_000),
        ),
        valid_from=NOON,
    )

    await world.prices.add([price])
    await world.prices.add([replace(price, currency="EUR")])
    before = {one.id: one for one in (await world.prices.load()).prices}[price.id]
    await world.prices.end(price.id, at=NOON + timedelta(days=1))
    await world.prices.end(price.id, at=NOON + timedelta(days=2))
    await world.prices.end("unknown", at=NOON)
    after = {one.id: one for one in (await world.prices.load()).prices}[price.id]

    assert replace(before, rates=tuple(before.rates)) == price
    assert after.valid_until == NOON + timedelta(days=1)
