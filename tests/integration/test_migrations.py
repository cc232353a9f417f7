"""Migrations against a real PostgreSQL: they agree with the tables, and go up and down with data in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from sandboxd.model.errors import DatabaseUnavailableError
from sandboxd.persistence import migrations
from sandboxd.persistence.engine import driver_url, plain_url
from sandboxd.persistence.tables import Base
from tests.postgres import PostgresServer

ROWS = {
    "0001": (
        "INSERT INTO clients VALUES ('acme', now())",
        "INSERT INTO freelancers VALUES ('acme', 'ada', now())",
        """INSERT INTO sandboxes VALUES ('sbx', 'acme', 'ada', '', '{"a": "b"}', 'basic', '', 'default', 'ACTIVE', '',
        'inc', 1, now(), now(), now(), NULL, 1)""",
        "INSERT INTO incarnations VALUES ('inc', 'sbx', 1, NULL, NULL, NULL, now(), NULL, NULL, '')",
        "INSERT INTO request_ids VALUES ('acme', 'r', 'Create', '', '\\x00', 'sbx', '{}', now(), NULL)",
        "INSERT INTO operations VALUES ('sbx', 'opr', 'replica', now())",
    ),
    "0002": (
        "INSERT INTO conversations VALUES ('sbx', 1, 'replica', now(), 'inc', 'prc', 'acp', 1, 2, '{}')",
        "INSERT INTO stdin_records VALUES ('sbx', 'inc', 'prc', 0, '\\x00')",
        "INSERT INTO commands VALUES ('acme', 'r', '\\x00', 'ses', 'trn')",
        "INSERT INTO sessions VALUES ('ses', 'sbx', 'acme', 'ada', '', '', '', '', 1, 1, 'trn', now(), now(), NULL)",
        "INSERT INTO turns VALUES ('trn', 'ses', 'sbx', 1, 'r', 'RUNNING', NULL, 'hello', now(), NULL)",
        "INSERT INTO turn_attachments VALUES ('trn', 0, 'a.png', 'image/png', '\\x00')",
        """INSERT INTO events VALUES ('ses', 1, 'trn', 'text', '{"kind": "text", "text": "x"}', 10, now())""",
    ),
    "0014": (
        """INSERT INTO erasures VALUES ('era', 'acme', NULL, now(), now(), '{}', NULL, '\\x00', '\\x00', 'key',
        'pem')""",
        "INSERT INTO api_keys VALUES ('acme', 'ACTIVE', 'f', '', NULL, 1, now(), NULL, NULL)",
    ),
    "0015": (
        "INSERT INTO sandbox_looks VALUES ('sbx', 'STOP', now(), now(), 'inc', now(), 1.5, 0, '')",
        "INSERT INTO duties VALUES ('lifecycle', 'replica', 1, now(), NULL)",
    ),
    "0017": (
        "INSERT INTO pools VALUES ('pol', 'acme', 'default', 'basic', 0, 1, 1, 60, 60, false, now(), now(), now(), 1)",
        """INSERT INTO pool_members VALUES ('sbx-2', 'inc-2', 'pol', 'acme', 'basic', 'STARTING', NULL, NULL, NULL, '',
        'replica', now(), NULL, NULL)""",
    ),
    "0018": (
        """UPDATE sandboxes SET image_generation = 'gen', image_number = 1, image_reference = 'r/a@sha256:0'
        WHERE id = 'sbx'""",
        """INSERT INTO image_generations VALUES ('gen', 'sbx', 'acme', 'ada', 1, 'inc', 'request', false, 'r', 'r',
        'a', 'r/base@sha256:1', NULL, NULL, 'active', 'activate', 1, 2, 3, false, 'sha256:0', 'sha256:2', 'sha256:3',
        4, 5, 6, 7, 8, '[["a", 1]]', '[]', false, '{"capture": 1.5}', NULL, 1, now(), now(), now(), now(), now(), now(),
        NULL, now(), 1)""",
    ),
    "0019": (
        """INSERT INTO sandbox_packages VALUES ('sbx', 'inc', 'replica', 1, 1, true, true, now(), now(), now(), NULL,
        NULL, 0, NULL, 0, '\\x00')""",
        """INSERT INTO package_changes VALUES ('sbx', 1, 'inc', 1, 'installed', 'dpkg', 'tree', '/var', '2', '',
        'root', true, now(), now(), 'prc', 'session', 'ses', false)""",
        "UPDATE sandboxes SET dirty_since = now(), unsaved_packages = 1 WHERE id = 'sbx'",
    ),
    "0035": (
        "INSERT INTO image_pushes VALUES ('push', now())",
        "UPDATE push_hold SET holder = 'gc', claim = 'c', since_time = now(), until_time = now() WHERE id = 1",
        "UPDATE image_generations SET phase = 'held' WHERE id = 'gen'",
    ),
    "0030": ("INSERT INTO abandoned_sightings VALUES ('the world', 'volume/a', now(), now(), 1, 0)",),
    "0020": ("INSERT INTO image_sightings VALUES ('acme/a', 'sha256:0', now(), NULL)",),
    "0021": (
        """INSERT INTO backup_sets VALUES ('bak', 'sbx', 'acme', 'ada', now(), 'r/a@sha256:0', '[]', '{"tier": "pro"}',
        1, 'quiesced', 'creating', now(), '', NULL, now(), now(), 1)""",
    ),
    "0033": ("INSERT INTO image_uploads VALUES ('one', 'acme/a', 'http://r/1', 'gen', now(), now(), 1, 2)",),
    "0034": ("INSERT INTO abandoned_looks VALUES ('the world', now(), NULL, '[]')",),
    "0031": (
        """INSERT INTO restore_drills VALUES ('drl', 'bak', 'sbx', 'acme', 'ada', 'schedule', NULL, 'running', false, 1,
        '', '[]', '{}', '', '', now(), now(), NULL, 1)""",
    ),
    "0023": (
        """INSERT INTO image_sboms VALUES ('gen', '\\x00', true, 'sha256:1', 'sha256:2', 3, now(), 1, '', now())""",
    ),
    "0013": ("INSERT INTO turn_places VALUES ('acme', 'r', 'ada', 'ses', now())",),
    "0003": (
        "INSERT INTO gateways VALUES ('gateway', now())",
        "INSERT INTO prices VALUES ('p', 'gemini', 'USD', '[]', now(), NULL)",
        """INSERT INTO usage_events (id, gateway, client, freelancer, sandbox, incarnation, method, model, state,
        reserved_prompt_tokens, reserved_output_tokens, start_time)
        VALUES ('use', 'gateway', 'acme', 'ada', 'sbx', 'inc', 'generateContent', 'gemini', 'OPEN', 1, 1, now())""",
    ),
    "0006": (
        """INSERT INTO budgets VALUES ('bdg', 'acme', '', '', 'DAY', 'TOKENS', 1000, '{80}', '2026-11-01', now(),
        now())""",
        # Counts in budget_accounts, and passes the threshold.
        """UPDATE usage_events SET state = 'SETTLED', end_time = now(), total_tokens = 900 WHERE id = 'use'""",
    ),
    "0007": ("INSERT INTO replicas VALUES ('replica', '127.0.0.1:1', now())",),
    "0010": ("UPDATE incarnations SET ready_time = now() WHERE id = 'inc'",),  # opens three intervals
    "0012": (
        "INSERT INTO audit_chains VALUES ('acme', 1, sha256('a'), now())",
        """INSERT INTO audit_entries VALUES ('acme', 1, 'aud', now(), 'INTENT', 'SandboxService/Create', 'platform', '',
        'r', 0, '', '', 1, NULL, '{}', sha256('a'), sha256('b'))""",
        "INSERT INTO audit_texts VALUES ('acme', 1, 'actor', 'boss', '\\x00', 'client_admin:boss')",
        "INSERT INTO audit_open_intents VALUES ('acme', 1, 'replica', 'SandboxService/Create', 'platform', '', 'r')",
        "INSERT INTO audit_heads VALUES ('acme', 1, 'key', sha256('b'), now(), '\\x00')",
    ),
}
"""One row in each table that a revision makes; a new revision that makes a table has to add its own."""


@pytest.fixture
async def empty_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    name = await postgres_server.create()
    yield postgres_server.url(name)
    await postgres_server.drop(name)


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(plain_url(url))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def tables_with_rows(url: str) -> set[str]:
    connection = await asyncpg.connect(plain_url(url))
    try:
        names = [
            row[0] for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ]
        return {name for name in names if await connection.fetchval(f'SELECT EXISTS (SELECT 1 FROM "{name}")')}
    finally:
        await connection.close()


def revisions() -> list[str]:
    """All revisions, oldest first."""
    scripts = ScriptDirectory.from_config(migrations.config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


async def test_the_tables_and_the_migrations_say_the_same(postgres_url: str) -> None:
    def differences(connection: Connection) -> Any:  # Any: Alembic's own lists
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)

    engine = create_async_engine(driver_url(postgres_url), poolclass=NullPool)
    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()

    assert found == []


async def test_every_revision_goes_up_and_down_with_data(empty_url: str) -> None:
    for revision in revisions():
        await migrations.upgrade(empty_url, revision=revision)
        await execute(empty_url, *ROWS.get(revision, ()))
    full = await tables_with_rows(empty_url)

    for revision in [*revisions()[-2::-1], "base"]:
        await migrations.downgrade(empty_url, revision=revision)
    left = await tables_with_rows(empty_url)
    again = await migrations.upgrade(empty_url)

    assert full == {*Base.metadata.tables, "alembic_version"}
    assert left == set()
    assert again == migrations.newest()


async def test_an_upgrade_keeps_what_is_there(empty_url: str) -> None:
    first = revisions()[0]
    await migrations.upgrade(empty_url, revision=first)
    await execute(empty_url, *ROWS[first])
    before = await tables_with_rows(empty_url)

    await migrations.upgrade(empty_url)
    await migrations.downgrade(empty_url, revision=first)

    assert await tables_with_rows(empty_url) == before


async def test_two_who_migrate_at_once_do_it_once(empty_url: str) -> None:
    answers = await asyncio.gather(*(migrations.upgrade(empty_url) for _ in range(3)))

    assert set(answers) == {migrations.newest()}
    assert await migrations.current(empty_url) == migrations.newest()


async def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailableError):
        await migrations.upgrade(f"postgresql://nobody@/nothing?host={tmp_path}")


async def test_an_older_version_leaves_a_newer_schema_as_it_is(empty_url: str) -> None:
    await migrations.upgrade(empty_url)
    connection = await asyncpg.connect(plain_url(empty_url))
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()

    assert await migrations.upgrade(empty_url) == "9999"
