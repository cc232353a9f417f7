"""Who has which duty: a row with a lease, free at once when its holder's advisory lock is (`liveness.py`)."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from typing_extensions import override

from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.persistence.engine import Database
from sandboxd.persistence.liveness import is_living

_TAKE: Final = f"""
    INSERT INTO duties AS d (duty, holder, epoch, lease_until) VALUES ($1, $2, 1, clock_timestamp() + $3::interval)
    ON CONFLICT (duty) DO UPDATE SET
        epoch = d.epoch + CASE WHEN d.holder = excluded.holder THEN 0 ELSE 1 END,
        holder = excluded.holder, lease_until = excluded.lease_until
    WHERE d.holder = excluded.holder OR d.lease_until < clock_timestamp() OR NOT {is_living("d.holder")}
    RETURNING epoch
"""  # noqa: S608  constant text
_DONE: Final = "UPDATE duties SET done_time = clock_timestamp() WHERE duty = $1"


class PostgresDuties(Duties):
    """Duties of one replica."""

    def __init__(self, database: Database, *, replica: str) -> None:
        self._database = database
        self._replica = replica

    @override
    async def take(self, duty: str, *, lease: timedelta) -> int | None:
        async with self._database.raw() as connection:
            epoch: int | None = await connection.fetchval(_TAKE, duty, self._replica, lease)
        return epoch

    @override
    async def done(self, duty: str) -> None:
        async with self._database.raw() as connection:
            await connection.execute(_DONE, duty)
