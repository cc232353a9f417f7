"""What sightings of abandoned things promise, held by the fake and by PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.manager.abandoned_ports import AbandonedSightings
from sandboxd.model.abandoned import AbandonedKind, AbandonedReason, Thing
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.image import GenerationId
from sandboxd.persistence.abandoned import PostgresAbandonedSightings
from sandboxd.persistence.engine import Database
from tests.fakes.abandoned import FakeSightings

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
PAUSE = timedelta(hours=1)


@pytest.fixture(params=["fake", "postgres"])
def sightings(request: pytest.FixtureRequest) -> AbandonedSightings:
    if request.param == "fake":
        return FakeSightings()
    database: Database = request.getfixturevalue("database")
    return PostgresAbandonedSightings(database)


async def test_time_that_was_looked_at_adds_up_and_a_jump_of_the_clock_adds_two_pauses(
    sightings: AbandonedSightings,
) -> None:
    first = await sightings.note("here", ["volume/a"], at=NOON, pause=PAUSE)
    await sightings.note("here", ["volume/a"], at=NOON + PAUSE, pause=PAUSE)
    await sightings.note("here", ["volume/a"], at=NOON + timedelta(days=365), pause=PAUSE)
    last = await sightings.note("here", ["volume/a"], at=NOON, pause=PAUSE)

    assert (first["volume/a"].looks, first["volume/a"].seen) == (1, timedelta(0))
    assert (last["volume/a"].first_time, last["volume/a"].looks, last["volume/a"].seen) == (NOON, 4, 3 * PAUSE)


async def test_what_is_not_seen_is_forgotten_and_each_place_has_its_own(sightings: AbandonedSightings) -> None:
    await sightings.note("here", ["volume/a", "volume/b"], at=NOON, pause=PAUSE)
    await sightings.note("there", ["volume/a"], at=NOON, pause=PAUSE)
    await sightings.note("here", ["volume/b"], at=NOON + PAUSE, pause=PAUSE)

    again = await sightings.note("here", ["volume/a", "volume/b"], at=NOON + 2 * PAUSE, pause=PAUSE)
    other = await sightings.note("there", ["volume/a"], at=NOON + 2 * PAUSE, pause=PAUSE)

    assert {name: one.looks for name, one in again.items()} == {"volume/a": 1, "volume/b": 3}
    assert other["volume/a"].looks == 2
    assert await sightings.note("here", [], at=NOON, pause=PAUSE) == {}


async def test_what_a_look_found_is_known_until_the_next_one_or_until_the_place_is_no_more(
    sightings: AbandonedSightings,
) -> None:
    full = Thing(
        kind=AbandonedKind.SNAPSHOT,
        name="a",
        identity="1",
        size_bytes=1 << 40,
        storage="backups",
        sandbox=SandboxId("sbx-1"),
        client=ClientId("acme"),
        backup="bak-1",
        commit=GenerationId("gen-1"),
        said=AbandonedReason.EXPIRED,
        removable=False,
    )
    bare = Thing(kind=AbandonedKind.VOLUME, name="b")
    await sightings.try_("here", at=NOON)
    await sightings.note("here", ["snapshot/a"], at=NOON, pause=PAUSE)

    before = (await sightings.looks())["here"]
    await sightings.keep("here", [full, bare], at=NOON + PAUSE)
    await sightings.try_("here", at=NOON + 2 * PAUSE)
    after = (await sightings.looks())["here"]
    known = await sightings.known("here")
    await sightings.forget(["here", "nowhere"])

    assert (before.tried_time, before.look_time, list(before.things)) == (NOON, None, [])
    assert (after.tried_time, after.look_time) == (NOON + 2 * PAUSE, NOON + PAUSE)
    assert list(after.things) == [full, bare]
    assert {name: one.looks for name, one in known.items()} == {"snapshot/a": 1}
    assert (await sightings.looks(), await sightings.known("here")) == ({}, {})
