"""Who serves on this database, and where: a row for each replica, believed only while its lock is held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from typing_extensions import override

from sandboxd.model.ids import SandboxId
from sandboxd.persistence.engine import Database
from sandboxd.persistence.liveness import is_living
from sandboxd.stream.ports import Holder, Replicas

SAY: Final = """
    INSERT INTO replicas (id, address, start_time) VALUES ($1, $2, now())
    ON CONFLICT (id) DO UPDATE SET address = excluded.address
"""
"""SQL: say where this replica is reached; by the connection that holds its lock."""
FORGET_THE_DEAD: Final = f"DELETE FROM replicas WHERE NOT {is_living('replicas.id')}"  # noqa: S608  constant text
"""SQL: sweep out rows whose replicas do not live."""
_HOLDER: Final = f"""
    SELECT r.id, r.address FROM conversations AS c JOIN replicas AS r ON r.id = c.owner
    WHERE c.sandbox = $1 AND {is_living("r.id")}
"""  # noqa: S608  constant text
_OTHERS: Final = f"SELECT id, address FROM replicas WHERE id <> $1 AND {is_living('replicas.id')} ORDER BY id"  # noqa: S608

_HOLDS: Final = "SELECT EXISTS (SELECT 1 FROM conversations WHERE sandbox = $1 AND owner = $2 AND lease_until > now())"


class PostgresReplicas(Replicas):
    """Finds replicas by their rows and locks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def holder(self, sandbox: SandboxId) -> Holder | None:
        async with self._database.raw() as connection:
            row = await connection.fetchrow(_HOLDER, sandbox)
        return Holder(replica=row["id"], address=row["address"]) if row else None

    @override
    async def others(self, *, than: str) -> Sequence[Holder]:
        async with self._database.raw() as connection:
            rows = await connection.fetch(_OTHERS, than)
        return [Holder(replica=row["id"], address=row["address"]) for row in rows]

    @override
    async def holds(self, replica: str, sandbox: SandboxId) -> bool:
        async with self._database.raw() as connection:
            return bool(await connection.fetchval(_HOLDS, sandbox, replica))
