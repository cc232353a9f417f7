"""Waiting for the database: a role starts while PostgreSQL and the migrations may still be on their way.

Imports neither SQLAlchemy nor Alembic, which take longer to import than the database takes to answer.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeVar

import asyncpg

from sandboxd.model.errors import UnavailableError
from sandboxd.persistence.scripts import newest_revision

PATIENCE: Final = timedelta(seconds=60)
_POLL_SECONDS: Final = 0.05
_CONNECT_SECONDS: Final = 5.0
T = TypeVar("T")


async def wait_for_schema(url: str, *, patience: timedelta = PATIENCE) -> None:
    """Wait until the database answers and has the schema that this version needs, or a newer one.

    Raises:
        UnavailableError: It does not, within the patience; the text says what to do.
    """
    wanted = newest_revision()
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        try:
            found = await read_revision(url)
            if found >= wanted:
                return
            problem = f"its schema is {found or 'empty'} and this version needs {wanted}: run `sandboxd migrate`"
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            problem = f"it does not answer ({type(error).__name__})"
        if time.monotonic() > deadline:
            raise UnavailableError(f"The database cannot be used: {problem}.")
        await asyncio.sleep(_POLL_SECONDS)


async def while_away(
    work: Callable[[], Awaitable[T]],
    *,
    patience: timedelta = PATIENCE,
    every: float = _POLL_SECONDS,
    waiting: Callable[[UnavailableError], None] | None = None,
) -> T:
    """Do what a start needs of the database, again for as long as it does not answer: it may go away in between.

    Args:
        work: What is to be done.
        patience: How long the database may be away.
        every: Seconds between two tries.
        waiting: Told once, before the second try.

    Raises:
        UnavailableError: It does not, within the patience.
    """
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        try:
            return await work()
        except UnavailableError as error:
            if time.monotonic() > deadline:
                raise
            if waiting is not None:
                waiting(error)
                waiting = None
        await asyncio.sleep(every)


async def read_revision(url: str) -> str:
    """Return the revision of the database's schema; empty where it has none."""
    connection = await asyncpg.connect(re.sub(r"^\w+(\+\w+)?://", "postgresql://", url), timeout=_CONNECT_SECONDS)
    try:
        found = await connection.fetchval("SELECT max(version_num) FROM alembic_version")
    except asyncpg.UndefinedTableError:
        return ""
    finally:
        await connection.close(timeout=_CONNECT_SECONDS)
    return str(found or "")
