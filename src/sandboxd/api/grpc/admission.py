"""How many streams may be open, in all and for one client; and the word that the server is about to stop."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sandboxd.api.grpc.errors import ServerDrainingError
from sandboxd.model.errors import ExhaustedError, QuotaViolation
from sandboxd.model.ids import ClientId

RETRY_AFTER = timedelta(seconds=1)
COME_BACK_SECONDS = (0.1, 1.1)
"""When the clients of a server that stops are asked to come back, spread between these."""


class StreamSlots:
    """Counts the streams that are open here."""

    def __init__(self, *, total: int, per_client: int) -> None:
        self._total = total
        self._per_client = per_client
        self._open: Counter[ClientId] = Counter()

    @contextmanager
    def take(self, client: ClientId) -> Iterator[None]:
        """Hold one slot.

        Raises:
            ExhaustedError: All are taken.
        """
        mine, all_of_them = self._open[client], self._open.total()
        if mine >= self._per_client or all_of_them >= self._total:
            subject, limit = (
                (f"clients/{client}", self._per_client) if mine >= self._per_client else ("server", self._total)
            )
            raise ExhaustedError(
                "Too many streams are open. Close some, or try again later.",
                violations=[QuotaViolation(subject=subject, description=f"at most {limit} open streams")],
                retry_after=RETRY_AFTER,
                limit=str(limit),
            )
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]


class Drain:
    """Told once that the server stops; streams end themselves then."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    def begin(self) -> None:
        """Tell every stream to end."""
        self._begun.set()

    def cease(self) -> None:
        """Let streams begin again."""
        self._begun.clear()

    def refuse(self) -> None:
        """Let no new stream begin.

        Raises:
            ServerDrainingError: The server is about to stop.
        """
        if self._begun.is_set():
            raise draining()

    async def end(self) -> None:
        """Wait for the word.

        Raises:
            ServerDrainingError: The server is about to stop.
        """
        await self._begun.wait()
        raise draining()


def draining() -> ServerDrainingError:
    """Make the error that ends streams of a server that stops. They must not all come back in the same moment."""
    spread = timedelta(seconds=random.uniform(*COME_BACK_SECONDS))  # noqa: S311  no secret
    return ServerDrainingError(
        "This server is stopping. Nothing is lost: open the session again after the last sequence number that you saw.",
        retry_after=spread,
    )
