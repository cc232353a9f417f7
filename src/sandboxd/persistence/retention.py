"""What is forgotten after its time: request ids of stream commands. Those of other calls are the manager's affair."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from sandboxd.persistence.engine import Database

COMMANDS_KEPT_FOR: Final = timedelta(days=30)
"""How long a stream's request id is remembered (design.md, section 3)."""
_FORGET: Final = """
    DELETE FROM commands WHERE (client, request_id) IN (
        SELECT client, request_id FROM commands WHERE create_time <= now() - $1::interval
        ORDER BY create_time LIMIT $2 FOR UPDATE SKIP LOCKED)
"""


async def forget_commands(database: Database, *, kept_for: timedelta = COMMANDS_KEPT_FOR, limit: int = 1000) -> int:
    """Delete the oldest commands beyond their time, at most so many; answers how many. Call again while it is `limit`.

    Raises:
        DatabaseUnavailableError: PostgreSQL does not answer.
    """
    async with database.raw() as connection:
        done = await connection.execute(_FORGET, kept_for, limit)
    return int(done.rpartition(" ")[2])
