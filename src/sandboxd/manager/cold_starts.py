"""How many sandboxes this replica starts at once, and whose turn it is: no client starves another.

A start that no pool could spare costs seconds of processors and a node. Each client has so many at a time; beyond that,
and beyond what all may have together, they wait in a queue of their client's, and the queues take turns. Who would
wait too long, or finds too many waiting, is refused with advice when to try again.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from datetime import timedelta
from typing import Final

from sandboxd.manager.pool_metrics import PoolMetrics
from sandboxd.model.ids import ClientId
from sandboxd.model.pool import StartLimits
from sandboxd.model.pool_errors import CapacityError

RETRY_AFTER: Final = timedelta(seconds=2)


class ColdStarts:
    """Gives out places for starts."""

    def __init__(self, *, limits: StartLimits, metrics: PoolMetrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._running = Counter[ClientId]()
        self._queues: OrderedDict[ClientId, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return sum(len(queue) for queue in self._queues.values())

    @property
    def running(self) -> int:
        """How many have one."""
        return self._running.total()

    def try_take(self, client: ClientId) -> bool:
        """Take a place if one is free and nobody of this client waits for one."""
        if client in self._queues or not self._free(client):
            return False
        self._running[client] += 1
        return True

    async def take(self, client: ClientId, *, timeout: timedelta) -> None:
        """Wait for a place, in turn with the other clients.

        Raises:
            CapacityError: Too many wait, or none came free in time.
        """
        if self.try_take(client):
            return
        queue = self._queues.get(client)
        if self.waiting >= self._limits.max_waiting or len(queue or ()) >= self._limits.max_waiting_per_client:
            raise self._refuse()
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(place)
        self._metrics.starts_waiting(self.waiting)
        granted = False
        try:
            await asyncio.wait({place}, timeout=min(timeout, self._limits.patience).total_seconds())
            granted = place.done()
        finally:
            if not granted:
                if place.done():  # given in the moment in which the caller went away
                    self.release(client)
                else:
                    self._forget(client, place)
            self._metrics.starts_waiting(self.waiting)
        if not granted:
            raise self._refuse()

    def release(self, client: ClientId) -> None:
        """Give a place back, and to whose turn it is."""
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._grant()

    def _grant(self) -> None:
        for client in list(self._queues):
            if not self._free(client):
                continue
            queue = self._queues[client]
            queue.popleft().set_result(None)
            self._running[client] += 1
            # Its next one comes after everybody else's.
            if queue:
                self._queues.move_to_end(client)
            else:
                del self._queues[client]

    def _free(self, client: ClientId) -> bool:
        return self.running < self._limits.total and self._running[client] < self._limits.per_client

    def _forget(self, client: ClientId, place: asyncio.Future[None]) -> None:
        queue = self._queues[client]
        queue.remove(place)
        if not queue:
            del self._queues[client]

    def _refuse(self) -> CapacityError:
        self._metrics.start_refused()
        return CapacityError(waiting=self.waiting, retry_after=RETRY_AFTER)
