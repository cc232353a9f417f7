"""A wake-up for everybody who waits for a change of some state.

It carries no data and remembers nothing: a waiter looks at the state, finds nothing to do, and waits, without another
`await` in between. That is race-free because all of it runs on one event loop.
"""

from __future__ import annotations

import asyncio


class Broadcast:
    """Wakes all present waiters at once."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Wait for the next `notify`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def notify(self) -> None:
        """Wake everybody who waits now."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
