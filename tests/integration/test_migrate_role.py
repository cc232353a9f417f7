"""The role `migrate` beside a database that is still on its way, as an installation brings both up at once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sandboxd.bootstrap.migrate import migrate
from sandboxd.model.errors import UnavailableError
from sandboxd.persistence import migrations
from sandboxd.settings import Settings, load_settings
from tests.eventually import eventually
from tests.fault_proxy import before_postgres, url_through
from tests.postgres import PostgresServer


async def test_a_database_that_comes_later_is_waited_for_and_migrated(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.url(await postgres_server.create())
    proxy = before_postgres(url)
    proxy.refusing = True
    with capture_logs() as logs:
        async with proxy.running():
            settings = settings_of(tmp_path, url_through(proxy, url))
            migrating = asyncio.create_task(migrate(settings, wait_seconds=60))
            await eventually(lambda: any(one["event"] == "migrate.waiting" for one in logs), within=20)
            assert not migrating.done()

            proxy.refusing = False
            revision = await migrating

    assert revision == migrations.newest()
    assert len([one for one in logs if one["event"] == "migrate.waiting"]) == 1, "it is told once"


async def test_a_database_that_does_not_come_is_told_when_the_wait_is_over(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "postgresql://nobody@127.0.0.1:9/none")
    began = time.monotonic()

    with pytest.raises(UnavailableError):
        await migrate(settings)
    at_once = time.monotonic() - began
    with pytest.raises(UnavailableError):
        await migrate(settings, wait_seconds=1)

    assert time.monotonic() - began - at_once >= 1


def settings_of(home: Path, url: str) -> Settings:
    return load_settings(data_dir=home, database_url=url, database_app_role="-")
