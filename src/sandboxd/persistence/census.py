"""How many sandboxes there are, by state. For the metrics: every replica may ask now and then, and gets the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sandboxd.model.sandbox import SandboxState
from sandboxd.persistence.engine import Database

_COUNT: Final = "SELECT state, count(*) AS number FROM sandboxes WHERE state <> 'TERMINATED' GROUP BY state"
"""Terminated ones are history, and grow for ever."""


async def count_sandboxes(database: Database) -> Mapping[SandboxState, int]:
    """Count the sandboxes that are not terminated; states without one are 0.

    Raises:
        DatabaseUnavailableError: PostgreSQL does not answer.
    """
    async with database.raw() as connection:
        found = {row["state"]: row["number"] for row in await connection.fetch(_COUNT)}
    return {state: found.get(state.value, 0) for state in SandboxState if state is not SandboxState.TERMINATED}
