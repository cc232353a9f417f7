"""The border: what asyncpg and SQLAlchemy raise becomes one of our errors, or is a bug and stays what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg
import sqlalchemy.exc

from sandboxd.model.errors import ConflictError, DatabaseUnavailableError, SandboxdError

_AWAY: Final = ("08", "53", "57", "58")
"""SQLSTATE classes: connection exception, insufficient resources, operator intervention (shut down, cancelled by the
statement timeout), system error. 55P03 is added below: a lock was not free within the lock timeout."""
_COLLISIONS: Final = frozenset({"40001", "40P01"})
"""Serialisation failure and deadlock: the transaction was undone and may be begun again."""
_ENDED: Final = frozenset({"57P01", "57P02", "57P05"})
"""The server ended the session: an administrator's command, a crash of another session, its idle timeout."""
IDLE_TIMEOUTS: Final = frozenset({"25P03", "25P04"})
"""The server ended a session that sat idle in a transaction, or a transaction that took too long."""


def sqlstate(error: BaseException) -> str:
    """PostgreSQL's five characters for what went wrong; empty where it did not say."""
    cause = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
    while cause is not None:
        found = getattr(cause, "sqlstate", None)
        if isinstance(found, str):
            return found
        cause = cause.__cause__
    return ""


def is_away(error: BaseException) -> bool:
    """Tell whether the database did not answer, or could not serve, so that nothing is known about the outcome."""
    state = sqlstate(error)
    if state:
        return state.startswith(_AWAY) or state == "55P03" or state in IDLE_TIMEOUTS
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        return error.connection_invalidated or isinstance(
            error, sqlalchemy.exc.InterfaceError | sqlalchemy.exc.OperationalError
        )
    if isinstance(error, ValueError):
        return False  # the driver could not encode a parameter: a bug of ours, which no repetition mends
    return isinstance(
        error,
        OSError
        | TimeoutError
        | asyncio.IncompleteReadError
        | asyncpg.InterfaceError
        | asyncpg.InternalClientError  # a connection that was cut at an unlucky moment leaves the driver confused
        | sqlalchemy.exc.TimeoutError,
    )


def is_cut(error: BaseException | None) -> bool:
    """Tell whether the connection was lost, and not the server slow or busy: another connection may do better."""
    if error is None or isinstance(error, TimeoutError):  # a kind of OSError
        return False
    state = sqlstate(error)
    if state:
        return state.startswith("08") or state in _ENDED
    return isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError)


def is_clean(error: BaseException) -> bool:
    """Tell whether the connection on which this happened may be used further: it said no, in good order."""
    return isinstance(error, SandboxdError) or (isinstance(error, asyncpg.PostgresError) and not is_away(error))


def is_collision(error: BaseException) -> bool:
    """Tell whether the transaction collided with another one."""
    return sqlstate(error) in _COLLISIONS


def translate(error: Exception) -> SandboxdError | None:
    """Our error for one of the drivers'; None where it is neither the weather nor a collision."""
    if isinstance(error, SandboxdError):
        return error
    if is_collision(error):
        return ConflictError("The transaction collided with another one. Try again.")
    if is_away(error):
        return DatabaseUnavailableError("The database does not answer. Try again in a moment.")
    return None


@contextmanager
def translated() -> Iterator[None]:
    """Raise our errors instead of the drivers'."""
    try:
        yield
    except SandboxdError:
        raise
    except Exception as error:
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error
