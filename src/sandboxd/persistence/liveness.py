"""How one replica tells whether another one lives: by the advisory lock that each holds for its lifetime.

The lock belongs to the session of a connection (`presence.py`), so PostgreSQL itself frees it in the moment the process
dies. Looking at `pg_locks` takes nothing: trying the lock would, and could hold up the replica's own start.
"""

from __future__ import annotations

from typing import Final

_KEY: Final = "hashtextextended('sandboxd replica ' || {replica}, 0)"
_HELD: Final = """
    SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
"""SQL: the keys of all advisory locks of this database; it depends on no row, so it is read once a statement."""

TAKE: Final = f"SELECT pg_try_advisory_lock({_KEY.format(replica='$1::text')})"
"""SQL: take a replica's lock for the life of the connection; tells whether it was free."""


def is_living(replica: str) -> str:
    """SQL condition: the replica named by this SQL expression holds its lock."""
    return f"({_KEY.format(replica=replica)} IN ({_HELD}))"
