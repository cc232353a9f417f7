"""One connection that stands for this process: it holds the replica's lock, hears hints and sends them.

With the lock goes the row that tells other replicas where this one is reached; rows of the dead are swept out by
whoever comes next.

While it lives, other replicas know that this one does (`liveness.py`). When it breaks they may take our conversations
over, which the epochs make safe; it is made again with growing waits, and the lock is taken again. Hints that were sent
meanwhile are lost, as the port allows.
"""

from __future__ import annotations

import asyncio
import random
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import asyncpg
import structlog
from typing_extensions import override

from sandboxd.persistence.engine import DatabaseSettings, plain_url, server_settings
from sandboxd.persistence.liveness import TAKE
from sandboxd.persistence.replicas import FORGET_THE_DEAD, SAY
from sandboxd.stream.ports import Wakeups

log = structlog.get_logger(__name__)

TOPICS: Final = ("usage", "events", "watchers", "sandboxes", "conversations", "clients", "texts")
MAX_PENDING: Final = 10_000
"""Different payloads that wait for one slow reader, or for the connection; the oldest is let fall, as hints may be."""
_FIRST_WAIT_SECONDS: Final = 0.05
_LAST_WAIT_SECONDS: Final = 5.0
_BEAT_SECONDS: Final = 5.0
_LOCK_WAIT_SECONDS: Final = 0.1
_SEND: Final = "SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS hint (channel, payload)"


def channel(topic: str) -> str:
    """PostgreSQL's name for a topic."""
    return f"sandboxd_{topic}"


class ReplicaPresence(Wakeups):
    """This replica's life, as the others see it, and its ear for hints."""

    def __init__(
        self, settings: DatabaseSettings, *, replica: str, address: str = "", topics: Sequence[str] = TOPICS
    ) -> None:
        """Name the replica; nothing connects before `run`.

        Args:
            settings: How to reach the database. The connection is one on top of the pool's.
            replica: Id of this process's life; a new process has a new one.
            address: Where other replicas reach this one, `host:port`; empty where they do not.
            topics: What it may hear.
        """
        self._settings = replace(settings, application_name=f"{settings.application_name} presence")
        self._replica = replica
        self.address = address
        """May be set until `run`: the port is known when it is bound."""
        self._topics = tuple(topics)
        self._readers: weakref.WeakSet[_Reader] = weakref.WeakSet()
        self._outgoing: dict[tuple[str, str], None] = {}
        self._to_send = asyncio.Event()
        self._held = asyncio.Event()
        self._lost_at: float | None = None

    @property
    def held(self) -> bool:
        """True while the lock is ours and hints arrive."""
        return self._held.is_set()

    @property
    def lost_for(self) -> timedelta:
        """How long ago the lock was lost that has not come back; zero while it is ours, and before it ever was."""
        return timedelta() if self._lost_at is None else timedelta(seconds=time.monotonic() - self._lost_at)

    async def wait_held(self) -> None:
        """Wait until the lock is ours: before this the replica must not own anything."""
        await self._held.wait()

    async def run(self) -> None:
        """Hold the connection until cancelled; owned by the service's task group."""
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                await self._hold()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if self._held.is_set():
                    wait = _FIRST_WAIT_SECONDS
                log.warning("presence.lost", replica=self._replica, retry_seconds=round(wait, 2), error=str(error))
            finally:
                if self._held.is_set():
                    self._lost_at = time.monotonic()
                self._held.clear()
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311  no secret
            wait = min(wait * 2, _LAST_WAIT_SECONDS)

    @override
    def listen(self, topic: str) -> AsyncIterator[str]:
        if topic not in self._topics:
            raise ValueError(f"nobody hears the topic {topic}")
        reader = _Reader(topic)
        self._readers.add(reader)
        return reader

    @override
    async def notify(self, topic: str, payload: str) -> None:
        _add(self._outgoing, (channel(topic), payload))
        self._to_send.set()

    async def _hold(self) -> None:
        deadline = self._settings.connect_timeout.total_seconds()
        connection = await asyncpg.connect(
            plain_url(self._settings.url),
            timeout=deadline,
            command_timeout=deadline,
            server_settings={
                **server_settings(self._settings),
                # A machine that vanished must not seem to live for the two hours that are TCP's default.
                "tcp_keepalives_idle": "5",
                "tcp_keepalives_interval": "2",
                "tcp_keepalives_count": "3",
            },
        )
        try:
            await self._take(connection)
            for topic in self._topics:
                await connection.add_listener(channel(topic), self._heard(topic))
            await connection.execute(FORGET_THE_DEAD)
            if self.address:
                await connection.execute(SAY, self._replica, self.address)
            self._held.set()
            self._lost_at = None
            log.info("presence.held", replica=self._replica, address=self.address)
            await self._send_until_lost(connection)
        finally:
            connection.terminate()

    async def _take(self, connection: asyncpg.Connection[Any]) -> None:  # Any: rows are records of any shape
        # The server may not have noticed yet that our connection before this one has ended.
        while not await connection.fetchval(TAKE, self._replica):
            await asyncio.sleep(_LOCK_WAIT_SECONDS)

    async def _send_until_lost(self, connection: asyncpg.Connection[Any]) -> None:
        connection.add_termination_listener(lambda _: self._to_send.set())
        while not connection.is_closed():
            try:
                async with asyncio.timeout(_BEAT_SECONDS):
                    await self._to_send.wait()
            except TimeoutError:
                await connection.fetchval("SELECT 1")  # finds out about a peer that is silently gone
                continue
            self._to_send.clear()
            hints = list(self._outgoing)
            self._outgoing.clear()
            if hints and not connection.is_closed():
                await connection.execute(_SEND, [name for name, _ in hints], [payload for _, payload in hints])
        raise ConnectionResetError("the database closed the connection")

    def _heard(self, topic: str) -> Callable[..., None]:
        def heard(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            for reader in list(self._readers):
                if reader.topic == topic:
                    reader.add(str(payload))

        return heard


class _Reader(AsyncIterator[str]):
    """One who listens: payloads that came while it was busy, each once."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._pending: dict[str, None] = {}
        self._ready = asyncio.Event()

    def add(self, payload: str) -> None:
        _add(self._pending, payload)
        self._ready.set()

    @override
    async def __anext__(self) -> str:
        while not self._pending:
            self._ready.clear()
            await self._ready.wait()
        payload = next(iter(self._pending))
        del self._pending[payload]
        return payload


def _add(pending: dict[Any, None], item: Any) -> None:  # Any: a payload, or a channel with one
    pending[item] = None
    if len(pending) > MAX_PENDING:
        del pending[next(iter(pending))]
