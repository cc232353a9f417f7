"""A duty is one replica's at a time, and free as soon as its holder dies or stands still."""

from __future__ import annotations

from datetime import timedelta

from sandboxd.persistence.duties import PostgresDuties
from sandboxd.persistence.engine import Database
from tests.eventually import eventually
from tests.integration.test_presence import living

LONG, SHORT = timedelta(minutes=5), timedelta(milliseconds=100)
DUTY = "lifecycle"


async def test_a_duty_stays_with_its_holder_while_it_lives_and_goes_on_when_it_dies(
    database: Database, postgres_url: str
) -> None:
    one, two = PostgresDuties(database, replica="one"), PostgresDuties(database, replica="two")
    async with living(postgres_url, "two"):
        async with living(postgres_url, "one"):
            assert await one.take(DUTY, lease=LONG) == 1
            assert await two.take(DUTY, lease=LONG) is None
            assert await one.take(DUTY, lease=LONG) == 1
            await one.done(DUTY)

        async def followed() -> int:
            epoch = await two.take(DUTY, lease=LONG)
            assert epoch is not None
            return epoch

        assert await eventually(followed) == 2


async def test_a_holder_that_stands_still_loses_the_duty_with_its_lease(database: Database, postgres_url: str) -> None:
    one, two = PostgresDuties(database, replica="one"), PostgresDuties(database, replica="two")
    async with living(postgres_url, "one"), living(postgres_url, "two"):
        await one.take(DUTY, lease=SHORT)

        async def followed() -> int:
            epoch = await two.take(DUTY, lease=LONG)
            assert epoch is not None
            return epoch

        assert await eventually(followed) == 2
        assert await one.take(DUTY, lease=LONG) is None
