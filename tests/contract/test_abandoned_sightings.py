"""What sightings of abandoned things promise, held by the fake and by PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.manager.abandoned_ports import AbandonedSightings
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
