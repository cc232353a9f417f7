"""What sightings of images promise, held by the fake and by PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.manager.image_care_ports import ImageSightings
from sandboxd.persistence.engine import Database
from sandboxd.persistence.image_sightings import PostgresImageSightings
from tests.fakes.image_care import FakeImageSightings

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)


@pytest.fixture(params=["fake", "postgres"])
def sightings(request: pytest.FixtureRequest) -> ImageSightings:
    if request.param == "fake":
        return FakeImageSightings()
    database: Database = request.getfixturevalue("database")
    return PostgresImageSightings(database)


async def test_the_last_use_counts_and_each_repository_has_its_own(sightings: ImageSightings) -> None:
    await sightings.note_used("acme/a", ["sha256:1", "sha256:2", "sha256:2"], at=NOON)
    await sightings.note_used("acme/a", ["sha256:2"], at=LATER)
    await sightings.note_used("acme/b", [], at=LATER)

    assert await sightings.last_used("acme/a") == {"sha256:1": NOON, "sha256:2": LATER}
    assert await sightings.last_used("acme/b") == {}


async def test_an_orphan_is_one_since_it_was_found_without_a_break(sightings: ImageSightings) -> None:
    assert await sightings.note_orphans("acme/a", ["sha256:1", "sha256:2"], at=NOON) == {
        "sha256:1": NOON,
        "sha256:2": NOON,
    }
    await sightings.note_orphans("acme/b", ["sha256:1"], at=NOON)

    assert await sightings.note_orphans("acme/a", ["sha256:1"], at=LATER) == {"sha256:1": NOON}
    assert await sightings.note_orphans("acme/a", ["sha256:2"], at=LATER) == {"sha256:2": LATER}
    assert await sightings.note_orphans("acme/a", [], at=LATER) == {}
    assert await sightings.note_orphans("acme/b", ["sha256:1"], at=LATER) == {"sha256:1": NOON}


async def test_what_is_no_orphan_any_more_keeps_its_last_use(sightings: ImageSightings) -> None:
    await sightings.note_orphans("acme/a", ["sha256:1"], at=NOON)
    await sightings.note_used("acme/a", ["sha256:1"], at=NOON)

    await sightings.note_orphans("acme/a", [], at=LATER)

    assert await sightings.last_used("acme/a") == {"sha256:1": NOON}
    assert await sightings.note_orphans("acme/a", ["sha256:1"], at=LATER) == {"sha256:1": LATER}


async def test_what_is_gone_is_forgotten(sightings: ImageSightings) -> None:
    await sightings.note_used("acme/a", ["sha256:1"], at=NOON)
    await sightings.note_orphans("acme/a", ["sha256:2"], at=NOON)

    for digest in ("sha256:1", "sha256:2", "sha256:3"):
        await sightings.forget("acme/a", digest)

    assert await sightings.last_used("acme/a") == {}
    assert await sightings.note_orphans("acme/a", ["sha256:2"], at=LATER) == {"sha256:2": LATER}
