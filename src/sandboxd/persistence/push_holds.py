"""The hold on pushes in its one row, and the pushes in flight. Each step is one short transaction.

Who begins a push locks the row in common, who holds locks it alone: so a hold sees every push that began before it, and
every push a hold that was before it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import asyncpg
from typing_extensions import override

from sandboxd.manager.push_hold_ports import PushHolds, PushId
from sandboxd.model.push_hold import HoldLostError, HoldTakenError, PushesHeldError, PushHold
from sandboxd.persistence.engine import Database
from sandboxd.persistence.escape import escape, unescape

_ROW: Final = """
    holder, since_time, until_time, held_time, until_time > clock_timestamp() AS running
"""
_LOOK: Final = f"SELECT {_ROW} FROM push_hold WHERE holder IS NOT NULL"  # noqa: S608  constant text
_LOCK: Final = f"SELECT {_ROW} FROM push_hold WHERE id = 1"  # noqa: S608  constant text
_COUNTS: Final = "until_time > clock_timestamp()"
_BEGIN: Final = "INSERT INTO image_pushes (id, until_time) VALUES ($1, clock_timestamp() + $2::interval)"
_FORGET: Final = "DELETE FROM image_pushes WHERE until_time < clock_timestamp()"
_RENEW: Final = f"""
    UPDATE image_pushes SET until_time = greatest(until_time, clock_timestamp() + $2::interval)
    WHERE id = $1 AND {_COUNTS} RETURNING id
"""  # noqa: S608  constant text
_END: Final = "DELETE FROM image_pushes WHERE id = $1"
_LINGER: Final = "UPDATE image_pushes SET until_time = clock_timestamp() + $2::interval WHERE id = $1"
_IN_FLIGHT: Final = f"SELECT count(*) FROM image_pushes WHERE {_COUNTS}"  # noqa: S608  constant text
_CLAIM: Final = f"""
    UPDATE push_hold SET holder = $1, claim = $2,
        since_time = CASE WHEN holder = $1 AND {_COUNTS} THEN since_time ELSE clock_timestamp() END,
        held_time = CASE WHEN holder = $1 AND {_COUNTS} THEN held_time END,
        until_time = greatest(
            CASE WHEN holder = $1 THEN until_time END, clock_timestamp() + $3::interval)
    WHERE id = 1 AND (holder IS NULL OR holder = $1 OR NOT {_COUNTS}) RETURNING {_ROW}
"""  # noqa: S608  constant text
_STANDS: Final = f"SELECT true FROM push_hold WHERE holder = $1 AND claim = $2 AND {_COUNTS}"  # noqa: S608  constant
_GRANT: Final = f"""
    UPDATE push_hold SET held_time = coalesce(held_time, clock_timestamp()),
        until_time = greatest(CASE WHEN held_time IS NOT NULL THEN until_time END, clock_timestamp() + $3::interval)
    WHERE holder = $1 AND claim = $2 AND {_COUNTS}
        AND NOT EXISTS (SELECT FROM image_pushes AS p WHERE p.until_time > clock_timestamp())
    RETURNING {_ROW}
"""  # noqa: S608  constant text
_EMPTY: Final = "holder = NULL, claim = NULL, since_time = NULL, until_time = NULL, held_time = NULL"
_TAKE_BACK: Final = f"UPDATE push_hold SET {_EMPTY} WHERE claim = $1 AND held_time IS NULL"  # noqa: S608  constant
_RELEASE: Final = f"UPDATE push_hold SET {_EMPTY} WHERE holder = $1 RETURNING id"  # noqa: S608  constant text


class PostgresPushHolds(PushHolds):
    """For `serve`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def begin_push(self, push: PushId, *, lease: timedelta) -> None:
        async with self._database.raw() as connection, connection.transaction():
            row = await connection.fetchrow(f"{_LOCK} FOR SHARE")
            if row is not None and row["running"]:
                raise PushesHeldError(_read(row))
            await connection.execute(_FORGET)
            await connection.execute(_BEGIN, push, lease)

    @override
    async def renew_push(self, push: PushId, *, lease: timedelta) -> bool:
        async with self._database.raw() as connection:
            return await connection.fetchval(_RENEW, push, lease) is not None

    @override
    async def end_push(self, push: PushId, *, linger: timedelta) -> None:
        async with self._database.raw() as connection:
            if linger:
                await connection.execute(_LINGER, push, linger)
            else:
                await connection.execute(_END, push)

    @override
    async def in_flight(self) -> int:
        return int((await self._database.fetch_one(_IN_FLIGHT))["count"])

    @override
    async def claim(self, holder: str, claim: str, *, lease: timedelta) -> PushHold:
        async with self._database.raw() as connection, connection.transaction():
            present = await connection.fetchrow(f"{_LOCK} FOR UPDATE")
            row = await connection.fetchrow(_CLAIM, escape(holder), claim, lease)
            if row is None:
                raise HoldTakenError(_read(present))
        return _read(row)

    @override
    async def grant(self, holder: str, claim: str, *, span: timedelta) -> PushHold | None:
        async with self._database.raw() as connection:
            row = await connection.fetchrow(_GRANT, escape(holder), claim, span)
            if row is None and await connection.fetchval(_STANDS, escape(holder), claim) is None:
                raise HoldLostError(f"What {holder} was about to hold was released or taken over meanwhile.")
        return None if row is None else _read(row)

    @override
    async def take_back(self, claim: str) -> None:
        async with self._database.raw() as connection:
            await connection.execute(_TAKE_BACK, claim)

    @override
    async def release(self, holder: str) -> bool:
        async with self._database.raw() as connection, connection.transaction():
            present = await connection.fetchrow(f"{_LOCK} FOR UPDATE")
            if await connection.fetchval(_RELEASE, escape(holder)) is not None:
                return True
            if present is not None and present["running"]:
                raise HoldTakenError(_read(present))
        return False

    @override
    async def present(self) -> PushHold | None:
        row = await self._database.fetch_one(_LOOK)
        return None if row is None else _read(row)


def _read(row: asyncpg.Record | Any) -> PushHold:  # Any: a record
    return PushHold(
        holder=unescape(row["holder"]),
        since_time=row["since_time"],
        until_time=row["until_time"],
        held_time=row["held_time"],
        running=row["running"],
    )
