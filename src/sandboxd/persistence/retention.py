"""What is forgotten after its time: request ids of stream commands, notices of budgets, and changes of packages.

Request ids of other calls are the manager's affair.
"""

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

NOTICES_KEPT_FOR: Final = timedelta(days=62)
"""How long a notice of a budget is kept: the longest period and the one before. A refused turn leaves one."""
_FORGET_NOTICES: Final = """
    DELETE FROM budget_notices WHERE id IN (
        SELECT id FROM budget_notices WHERE notice_time <= now() - $1::interval
        ORDER BY notice_time LIMIT $2 FOR UPDATE SKIP LOCKED)
"""


async def forget_notices(database: Database, *, kept_for: timedelta = NOTICES_KEPT_FOR, limit: int = 1000) -> int:
    """Delete the oldest notices of budgets beyond their time, at most so many; answers how many.

    Raises:
        DatabaseUnavailableError: PostgreSQL does not answer.
    """
    async with database.raw() as connection:
        done = await connection.execute(_FORGET_NOTICES, kept_for, limit)
    return int(done.rpartition(" ")[2])


async def forget_commands(database: Database, *, kept_for: timedelta = COMMANDS_KEPT_FOR, limit: int = 1000) -> int:
    """Delete the oldest commands beyond their time, at most so many; answers how many. Call again while it is `limit`.

    Raises:
        DatabaseUnavailableError: PostgreSQL does not answer.
    """
    async with database.raw() as connection:
        done = await connection.execute(_FORGET, kept_for, limit)
    return int(done.rpartition(" ")[2])


_FORGET_PACKAGES: Final = """
    DELETE FROM package_changes WHERE (sandbox, number) IN (
        SELECT sandbox, number FROM package_changes WHERE kept_time <= now() - $1::interval
        ORDER BY kept_time LIMIT $2 FOR UPDATE SKIP LOCKED)
"""


async def forget_package_changes(database: Database, *, kept_for: timedelta, limit: int = 1000) -> int:
    """Delete the oldest changes of packages beyond their time, at most so many; answers how many.

    Raises:
        DatabaseUnavailableError: PostgreSQL does not answer.
    """
    async with database.raw() as connection:
        done = await connection.execute(_FORGET_PACKAGES, kept_for, limit)
    return int(done.rpartition(" ")[2])
