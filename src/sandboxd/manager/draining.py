"""How the tasks of a replica that goes away end: within a grace, and what is late is left to who comes next."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta
from typing import Any


async def drain(tasks: Collection[asyncio.Task[Any]], *, grace: timedelta, undone_within: float) -> None:
    """Let tasks end within the grace, then cancel the rest: whoever recovers goes on with it.

    Args:
        tasks: All that run. Any: what they come to is their owners'.
        grace: For all of them together.
        undone_within: Seconds for those that are cancelled to give up what they hold.
    """
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=grace.total_seconds())
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=undone_within)
