"""Work that goes on until it has ended, or something cuts it short: a wish in its row, a sandbox that is started."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from sandboxd.model.errors import SandboxdError

T = TypeVar("T")


async def unless_cut_short(work: Coroutine[Any, Any, T], watch: Coroutine[Any, Any, SandboxdError], *, name: str) -> T:
    """Carry work out, and undo it when what is watched for comes first.

    Args:
        work: What is done. Any: what a coroutine sends and takes is asyncio's.
        watch: Returns, or raises, why the work must not go on.
        name: For the names of the tasks.

    Raises:
        SandboxdError: What the work failed with, or what cut it short.
    """
    working = asyncio.create_task(work, name=f"{name}-work")
    watching = asyncio.create_task(watch, name=f"{name}-watch")
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        working.cancel()
        await asyncio.wait({working})
        if not working.cancelled() and working.exception() is None:
            return working.result()  # it had just come to its end
        raise watching.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
