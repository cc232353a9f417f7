"""Migrations: bring a database to the newest schema, safely when two processes do it at once.

The scripts are in `alembic/` at the top of the checkout, and inside the package in an installed wheel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from sandboxd.persistence.engine import driver_url
from sandboxd.persistence.errors import translated
from sandboxd.persistence.scripts import scripts

_LOCK: Final = 0x5AB0_0001
"""Advisory lock that whoever migrates holds; any number that nobody else uses in this database."""

HEAD: Final = "head"

_Work: TypeAlias = Callable[[Config], None]


def config() -> Config:
    """Alembic's settings for our scripts."""
    made = Config()
    made.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    return made


def newest() -> str:
    """The revision that this version of the service is written for."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    if head is None:
        raise FileNotFoundError("The migration scripts are missing from this installation of sandboxd.")
    return head


async def upgrade(url: str, *, revision: str = HEAD) -> str:
    """Bring the database to a revision; answers the one that it has then.

    A second process that comes meanwhile waits, and then finds nothing to do. Safe to repeat. A schema that is newer
    than this version stays as it is: each migration works with the version before it, and a rollback needs no other.

    Raises:
        DatabaseUnavailableError: PostgreSQL does not answer.
    """
    if revision == HEAD and (await current(url)) > newest():
        return await current(url)
    return await _migrate(url, lambda settings: command.upgrade(settings, revision))


async def downgrade(url: str, *, revision: str) -> str:
    """Take the database back to a revision; answers the one that it has then."""
    return await _migrate(url, lambda settings: command.downgrade(settings, revision))


async def current(url: str) -> str:
    """The revision that the database has; empty where it has none."""
    return await _migrate(url, lambda _: None)


async def _migrate(url: str, work: _Work) -> str:
    engine = create_async_engine(driver_url(url), poolclass=NullPool, connect_args={"timeout": 10})
    try:
        with translated():
            async with engine.connect() as connection:
                # Held by the session, not by a transaction: each migration has its own. It ends with the connection.
                await connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
                await connection.commit()
                return await connection.run_sync(_run, work)
    finally:
        await engine.dispose()


def _run(connection: Connection, work: _Work) -> str:
    settings = config()
    settings.attributes["connection"] = connection
    work(settings)
    connection.commit()
    return MigrationContext.configure(connection).get_current_revision() or ""
