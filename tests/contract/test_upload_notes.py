"""What notes on uploads promise, held by the fake and by PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from sandboxd.images.upload_notes import UploadNotes
from sandboxd.model.image import GenerationId
from sandboxd.persistence.engine import Database
from sandboxd.persistence.uploads import PostgresUploadNotes
from tests.fakes.manager import FakeClock
from tests.fakes.uploads import FakeUploadNotes

HOUR = timedelta(hours=1)
GEN = GenerationId("gen-1")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["fake", "postgres"])
def make(request: pytest.FixtureRequest, clock: FakeClock) -> Callable[[int], UploadNotes]:
    if request.param == "fake":
        return lambda most: FakeUploadNotes(clock=clock, most=most)
    database: Database = request.getfixturevalue("database")
    return lambda most: PostgresUploadNotes(database, clock=clock, most=most)


async def test_a_note_says_how_far_an_upload_is_and_where_until_it_has_ended(
    make: Callable[[int], UploadNotes], clock: FakeClock
) -> None:
    notes = make(10)
    began = clock.now()
    await notes.begun("one", repository="a/b", location="http://r/1", commit=GEN, total_bytes=100)
    clock.advance(60)
    await notes.moved("one", location="http://r/2", sent_bytes=40)
    await notes.moved("nobody", location="http://r/2", sent_bytes=40)

    found = await notes.get("one")

    assert found is not None
    assert (found.repository, found.location, found.commit) == ("a/b", "http://r/2", GEN)
    assert (found.begin_time, found.update_time, found.sent_bytes, found.total_bytes) == (began, clock.now(), 40, 100)
    await notes.ended("one")
    await notes.ended("one")
    assert await notes.get("one") is None


async def test_the_quiet_ones_are_told_the_oldest_first(make: Callable[[int], UploadNotes], clock: FakeClock) -> None:
    notes = make(10)
    for name in ("b", "a", "c"):
        await notes.begun(name, repository="a/b", location="http://r/1", commit=GEN, total_bytes=1)
        clock.advance(60)
    clock.advance(HOUR.total_seconds())
    await notes.moved("a", location="http://r/2", sent_bytes=1)

    assert [one.id for one in await notes.quiet(for_=HOUR, limit=10)] == ["b", "c"]
    assert [one.id for one in await notes.quiet(for_=HOUR, limit=1)] == ["b"]


async def test_no_more_are_kept_than_there_is_a_bound_for(make: Callable[[int], UploadNotes], clock: FakeClock) -> None:
    notes = make(2)
    for name in ("old", "newer", "newest"):
        await notes.begun(name, repository="a/b", location="http://r/1", commit=GEN, total_bytes=1)
        clock.advance(60)

    assert [await notes.get(name) is not None for name in ("old", "newer", "newest")] == [False, True, True]
