"""What the hold on pushes promises, held by the fake and by PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from sandboxd.manager.push_hold_ports import PushHolds, PushId
from sandboxd.model.push_hold import HoldLostError, HoldTakenError, PushesHeldError
from sandboxd.persistence.engine import Database
from sandboxd.persistence.push_holds import PostgresPushHolds
from tests.fakes.push_holds import FakePushHolds

SPAN = timedelta(minutes=5)
ONE, OTHER = PushId("one"), PushId("other")
Later = Callable[[timedelta], Awaitable[None]]


@pytest.fixture(params=["fake", "postgres"])
def world(request: pytest.FixtureRequest) -> tuple[PushHolds, Later]:
    if request.param == "fake":
        fake = FakePushHolds()

        async def move(by: timedelta) -> None:
            fake.now += by

        return fake, move
    database: Database = request.getfixturevalue("database")

    async def age(by: timedelta) -> None:
        async with database.raw() as connection:
            for table in ("push_hold", "image_pushes"):
                await connection.execute(f"UPDATE {table} SET until_time = until_time - $1::interval", by)

    return PostgresPushHolds(database), age


async def test_a_hold_is_granted_when_the_pushes_before_it_have_ended_and_none_begins(
    world: tuple[PushHolds, Later],
) -> None:
    holds, _ = world
    await holds.begin_push(ONE, lease=SPAN)
    await holds.claim("gc", "first", lease=SPAN)

    waiting = await holds.grant("gc", "first", span=SPAN)
    with pytest.raises(PushesHeldError) as refused:
        await holds.begin_push(OTHER, lease=SPAN)
    seen = await holds.present()
    assert await holds.renew_push(ONE, lease=SPAN), "what has begun goes on"
    await holds.end_push(ONE, linger=timedelta(0))
    granted = await holds.grant("gc", "first", span=2 * SPAN)

    assert waiting is None
    assert refused.value.metadata["holder"] == "gc"
    assert (seen is not None and seen.held_time, granted is not None and granted.held_time is not None) == (None, True)
    assert granted is not None
    assert granted.until_time - granted.since_time >= 2 * SPAN
    assert await holds.present() == granted
    assert await holds.release("gc")
    assert not await holds.release("gc")
    await holds.begin_push(OTHER, lease=SPAN)
    assert await holds.in_flight() == 1


async def test_one_holds_at_a_time_until_its_time_is_over_and_then_it_is_told_as_overdue(
    world: tuple[PushHolds, Later],
) -> None:
    holds, later = world
    await holds.claim("gc", "first", lease=SPAN)
    await holds.grant("gc", "first", span=SPAN)

    with pytest.raises(HoldTakenError, match="gc"):
        await holds.claim("other", "second", lease=SPAN)
    with pytest.raises(HoldTakenError, match="gc"):
        await holds.release("other")
    await later(SPAN)
    overdue = await holds.present()
    await holds.begin_push(ONE, lease=SPAN)
    await holds.end_push(ONE, linger=timedelta(0))
    assert not await holds.release("other"), "it is somebody else's, and holds nobody"
    taken = await holds.claim("other", "second", lease=SPAN)

    assert (overdue is not None and overdue.holder, overdue is not None and overdue.running) == ("gc", False)
    assert (taken.holder, taken.held_time, taken.running) == ("other", None, True)
    with pytest.raises(HoldLostError):
        await holds.grant("gc", "first", span=SPAN)


async def test_the_holder_renews_it_and_an_older_call_of_theirs_takes_nothing_back(
    world: tuple[PushHolds, Later],
) -> None:
    holds, later = world
    await holds.claim("gc", "first", lease=SPAN)
    first = await holds.grant("gc", "first", span=2 * SPAN)
    await later(SPAN)

    await holds.claim("gc", "second", lease=timedelta(seconds=1))
    shorter = await holds.present()
    again = await holds.grant("gc", "second", span=4 * SPAN)
    for claim in ("first", "second"):
        await holds.take_back(claim)

    assert first is not None
    assert shorter is not None
    assert again is not None
    assert again.since_time == first.since_time
    assert again.held_time == first.held_time
    assert again.until_time > shorter.until_time, "and a claim had not shortened it"
    assert await holds.present() == again
    await holds.release("gc")
    await holds.claim("gc", "third", lease=SPAN)
    await holds.take_back("second")
    assert await holds.present() is not None
    await holds.take_back("third")
    assert await holds.present() is None


async def test_a_push_counts_until_its_lease_ends_and_lingers_where_it_is_told_to(
    world: tuple[PushHolds, Later],
) -> None:
    holds, later = world
    await holds.begin_push(ONE, lease=2 * SPAN)
    await holds.begin_push(OTHER, lease=SPAN)

    assert await holds.renew_push(ONE, lease=timedelta(seconds=1))
    await later(SPAN)
    counted = await holds.in_flight()
    assert not await holds.renew_push(OTHER, lease=SPAN), "it may be that somebody holds by now"
    await holds.end_push(ONE, linger=SPAN / 5)
    lingers = await holds.in_flight()
    await later(SPAN / 5)

    assert (counted, lingers, await holds.in_flight()) == (1, 1, 0)


async def test_a_push_and_a_hold_that_begin_at_once_never_both_find_the_way_free(
    world: tuple[PushHolds, Later],
) -> None:
    holds, _ = world
    both = []
    for number in range(20):

        async def push(number: int = number) -> bool:
            try:
                await holds.begin_push(PushId(str(number)), lease=SPAN)
            except PushesHeldError:
                return False
            return True

        async def hold(number: int = number) -> bool:
            await holds.claim("gc", str(number), lease=SPAN)
            return await holds.grant("gc", str(number), span=SPAN) is not None

        pushed, held = await asyncio.gather(push(), hold())
        both.append((pushed, held))
        await holds.end_push(PushId(str(number)), linger=timedelta(0))
        await holds.release("gc")

    assert (True, True) not in both
    assert (False, False) not in both
