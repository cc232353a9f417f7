"""How many sandboxes there are, by state. For the metrics: every replica may ask now and then, and gets the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sandboxd.model.sandbox import SandboxState
from sandboxd.persistence.engine import Database

STUCK_AFTER: Final = timedelta(minutes=5)
"""A sandbox that has been on its way for longer is stuck: a start takes a minute at most, and recovery tries again."""
_COUNT: Final = """
    SELECT state, count(*) AS number, count(*) FILTER (WHERE update_time < now() - $1::interval) AS old
    FROM sandboxes WHERE state <> 'TERMINATED' GROUP BY state
"""
"""Terminated ones are history, and grow for ever."""
_DIRTY: Final = """
    SELECT count(*) AS number, coalesce(now() - min(dirty_since), interval '0') AS oldest FROM sandboxes
    WHERE dirty_since IS NOT NULL AND state IN ('ACTIVE', 'HIBERNATING', 'HIBERNATED', 'WAKING', 'STOPPING', 'PAUSING')
"""
"""With compute alone: what another one had is gone, and no commit can save it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """The sandboxes that are not terminated."""

    states: Mapping[SandboxState, int]
    """How many are in each state; 0 where none is."""
    stuck: int
    """How many of them have been on their way for too long."""
    dirty: int
    """How many have compute, and something in their root file system that no commit has."""
    oldest_dirty: timedelta
    """For how long that one of them has been so that has longest."""


async def count_sandboxes(database: Database) -> Census:
    """Count the sandboxes.

    Raises:
        DatabaseUnavailableError: PostgreSQL does not answer.
    """
    rows = {row["state"]: row for row in await database.fetch(_COUNT, STUCK_AFTER)}
    dirty = await database.fetch_one(_DIRTY)
    states = [state for state in SandboxState if state is not SandboxState.TERMINATED]
    return Census(
        states={state: rows[state.value]["number"] if state.value in rows else 0 for state in states},
        stuck=sum(rows[state.value]["old"] for state in states if state.transient and state.value in rows),
        dirty=dirty["number"],
        oldest_dirty=max(dirty["oldest"], timedelta(0)),
    )
