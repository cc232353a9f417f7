"""Connections: one bounded pool a process, deadlines on every statement, collisions repeated, errors translated.

Two ways lead in: `begin` gives a SQLAlchemy connection in a transaction, `raw` the asyncpg connection beneath it for
the paths where every tenth of a millisecond counts. Both take from the same pool.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import asyncpg
import sqlalchemy
import sqlalchemy.exc
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from sandboxd.model.errors import ConflictError, DatabaseUnavailableError
from sandboxd.persistence.errors import is_clean, is_cut, translated
from sandboxd.persistence.escape import dump_json, load_json

ATTEMPTS: Final = 5
"""How often a transaction that collides is begun."""
READ_ATTEMPTS: Final = 3
"""How often a read is tried on connections that turn out to be cut."""
_FIRST_WAIT_SECONDS: Final = 0.005
_DRIVER: Final = "postgresql+asyncpg"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings:
    """How a process speaks to PostgreSQL."""

    url: str
    """`postgresql://user:password@host/database`; `?host=/directory` for a socket."""
    application_name: str = "sandboxd"
    pool_size: int = 15
    """Connections that are kept."""
    pool_overflow: int = 0
    """Connections on top of these, made and closed again under load: each costs the server a process and our statements
    their plans, at the moment when time is shortest."""
    pool_timeout: timedelta = timedelta(seconds=5)
    """How long to wait for a free connection."""
    connect_timeout: timedelta = timedelta(seconds=5)
    statement_timeout: timedelta = timedelta(seconds=10)
    """How long one statement may take; the server ends it."""
    silence_timeout: timedelta = timedelta(seconds=5)
    """How much longer the driver waits for a server that no longer speaks at all."""
    lock_timeout: timedelta = timedelta(seconds=5)
    """How long one statement may wait for a lock."""
    idle_in_transaction_timeout: timedelta = timedelta(seconds=30)
    """How long a transaction may sit between two statements; then the server ends the session."""


def driver_url(url: str) -> sqlalchemy.URL:
    """Read a database address, and name the driver that we use."""
    return make_url(url).set(drivername=_DRIVER)


def plain_url(url: str) -> str:
    """Write a database address for asyncpg itself."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def server_settings(settings: DatabaseSettings) -> dict[str, str]:
    """What every session tells the server at its start."""
    return {
        "application_name": settings.application_name,
        "statement_timeout": _milliseconds(settings.statement_timeout),
        "lock_timeout": _milliseconds(settings.lock_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(settings.idle_in_transaction_timeout),
        "jit": "off",  # compiling costs more than any of our statements
        "timezone": "UTC",
    }


def make_engine(settings: DatabaseSettings) -> AsyncEngine:
    """Make the pool. Nothing connects before it is used."""
    # The server ends a statement first; the driver's own limit is for a server that no longer speaks at all.
    command_timeout = settings.statement_timeout + settings.silence_timeout
    engine = create_async_engine(
        driver_url(settings.url),
        pool_size=settings.pool_size,
        max_overflow=settings.pool_overflow,
        pool_timeout=settings.pool_timeout.total_seconds(),
        pool_use_lifo=True,
        hide_parameters=True,  # prompts and tokens are parameters: no error may print them
        json_serializer=dump_json,
        json_deserializer=load_json,
        connect_args={
            "timeout": settings.connect_timeout.total_seconds(),
            "command_timeout": command_timeout.total_seconds(),
            "server_settings": server_settings(settings),
        },
    )
    sqlalchemy.event.listen(engine.sync_engine, "checkout", _refuse_closed)
    sqlalchemy.event.listen(engine.sync_engine, "invalidate", _cut)
    return engine


class Database:
    """The pool, and how work is done on it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.waited: Callable[[float], None] | None = None
        """Told of each wait for a connection, in seconds."""

    @property
    def engine(self) -> AsyncEngine:
        """The engine itself, for those who bring their own transaction."""
        return self._engine

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end, undone on an error."""
        with translated():
            began = time.monotonic()
            async with self._engine.begin() as connection:
                self._note_wait(began)
                yield connection

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[asyncpg.Connection[Any]]:  # Any: rows are records of any shape
        """The driver's own connection, outside any transaction; it is thrown away where its state is in doubt."""
        with translated():
            began = time.monotonic()
            async with self._engine.connect() as connection:
                self._note_wait(began)
                try:
                    driver = (await connection.get_raw_connection()).driver_connection
                    if driver is None:
                        raise sqlalchemy.exc.InterfaceError("", None, RuntimeError("no connection"))
                    yield driver
                except BaseException as error:
                    if not is_clean(error):
                        await connection.invalidate()
                    raise

    async def fetch(self, statement: str, *values: Any) -> Sequence[Any]:
        """Read rows, outside any transaction; again on another connection where the one from the pool was cut.

        The server may end a connection a moment before we use it, and only the use tells. A read that was cut has done
        nothing, so nobody has to hear of it. Any: parameters of a statement, and records.
        """
        for _ in range(1, READ_ATTEMPTS):
            try:
                async with self.raw() as connection:
                    return await connection.fetch(statement, *values)
            except DatabaseUnavailableError as error:
                if not is_cut(error.__cause__):
                    raise
        async with self.raw() as connection:
            return await connection.fetch(statement, *values)

    async def fetch_one(self, statement: str, *values: Any) -> Any:
        """Read the first row, as `fetch` does; None where there is none. Any: parameters of a statement."""
        return next(iter(await self.fetch(statement, *values)), None)

    def _note_wait(self, began: float) -> None:
        if self.waited is not None:
            self.waited(time.monotonic() - began)

    async def run(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Do work in a transaction; begin it again, a few times, where it collides with another one."""

        async def attempt() -> Result:
            async with self.begin() as connection:
                return await work(connection)

        return await repeat_collisions(attempt)

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


async def repeat_collisions(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Repeat a whole transaction that met a serialisation failure or a deadlock, with growing random waits.

    Raises:
        ConflictError: It collided every time.
    """
    for number in range(1, ATTEMPTS):
        try:
            return await attempt()
        except ConflictError as error:
            if type(error) is not ConflictError:
                raise  # a decision of ours, not a collision
        await asyncio.sleep(random.uniform(0.2, 1) * _FIRST_WAIT_SECONDS * 2**number)  # noqa: S311  no secret
    return await attempt()


def _refuse_closed(connection: Any, _record: Any, _proxy: Any) -> None:  # Any: SQLAlchemy's own signature
    """Refuse a pooled connection whose socket the server has closed, so that the pool gives a new one.

    A look at the socket's state: after a restart of PostgreSQL nobody pays with a failed statement, and nobody pays a
    round trip for asking every time.
    """
    if connection.driver_connection.is_closed():
        raise sqlalchemy.exc.DisconnectionError


def _cut(connection: Any, _record: Any, _error: Any) -> None:  # Any: SQLAlchemy's own signature
    """Cut a connection that is thrown away: SQLAlchemy would part politely, and wait 2 s for a silent server."""
    connection.driver_connection.terminate()


def _milliseconds(span: timedelta) -> str:
    return str(int(span.total_seconds() * 1000))
