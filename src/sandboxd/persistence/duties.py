"""Who has which duty: a row with a lease, free at once when its holder's advisory lock is (`liveness.py`)."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from typing_extensions import override

from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.persistence.engine import Database
from sandboxd.persistence.liveness import is_living


def taking(duty: str, *, holder: str, lease: str) -> str:
    """The statement that takes or keeps a duty, with what its caller's driver calls parameters. No row: it is taken."""
    return f"""
        INSERT INTO duties AS d (duty, holder, epoch, lease_until)
        VALUES ({duty}, {holder}, 1, clock_timestamp() + {lease})
        ON CONFLICT (duty) DO UPDATE SET
            epoch = d.epoch + CASE WHEN d.holder = excluded.holder THEN 0 ELSE 1 END,
            holder = excluded.holder, lease_until = excluded.lease_until
        WHERE d.holder = excluded.holder OR d.lease_until < clock_timestamp() OR NOT {is_living("d.holder")}
        RETURNING epoch
    """  # noqa: S608  constant text


_TAKE: Final = taking("$1", holder="$2", lease="$3::interval")
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
