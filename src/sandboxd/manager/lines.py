"""One line for each client, in this process: a crowd of one client's requests waits here, and not at the database.

Creates of a client take turns at its row's lock. Whoever waits there holds a connection, and a hundred of them would
hold all that the process has: other clients, and everything else, would be told that the database is not available.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from sandboxd.model.ids import ClientId

ABREAST: Final = 2
"""One has the lock, and the next one is there when it is given back."""


@dataclass(slots=True)
class _Line:
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ABREAST))
    people: int = 0


class Lines:
    """Lines of clients; a line is there as long as somebody stands in it."""

    def __init__(self) -> None:
        self._lines: dict[ClientId, _Line] = {}

    @asynccontextmanager
    async def turn(self, client: ClientId) -> AsyncIterator[None]:
        """Wait for a turn, first come, first served, for as long as the caller has time."""
        line = self._lines.setdefault(client, _Line())
        line.people += 1
        try:
            async with line.gate:
                yield
        finally:
            line.people -= 1
            if not line.people:
                del self._lines[client]

    def __len__(self) -> int:
        """How many clients have somebody in their line."""
        return len(self._lines)
