"""A TCP proxy that is bad weather: it delays, falls silent, starves, refuses, and loses an answer at a chosen byte.

It stands before PostgreSQL, an agent or the model API, because this machine's kernel can do none of that. Faults are
plain attributes: they hold from the next byte on, for connections that are open as for new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.engine import make_url

_CHUNK: Final = 64 << 10

Opener = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@dataclass(kw_only=True)
class LostAnswer:
    """An answer that is never delivered: the server did its work, and the connection ends before the client hears."""

    after: bytes
    """The client has sent this, since the loss was asked for ..."""
    answer: bytes
    """... and now the server says this: it is swallowed, and the connection is cut."""
    lost: asyncio.Event = field(default_factory=asyncio.Event)


class _Search:
    """Finds words in a stream, also where a word is cut between two chunks."""

    def __init__(self) -> None:
        self._tail = b""

    def found(self, word: bytes, chunk: bytes) -> bool:
        text = self._tail + chunk
        self._tail = text[-max(len(word) - 1, 0) :] if len(word) > 1 else b""
        return word in text


class FaultProxy:
    """One server behind bad weather."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._lost: LostAnswer | None = None
        self.latency = 0.0
        """Seconds that every chunk is late, each way: half of what a round trip costs more."""
        self.bandwidth = 0
        """Bytes in a second towards the client; 0 is no limit."""
        self.refusing = False
        """New connections are closed at once."""
        self.port = 0
        self.connections = 0
        """Connections that are open now."""
        self.peak = 0
        """Most connections that were open at once."""

    @property
    def silent(self) -> bool:
        """No byte passes, either way, and nobody is told; what was sent meanwhile passes afterwards."""
        return not self._flowing.is_set()

    @silent.setter
    def silent(self, silent: bool) -> None:
        self._flowing.clear() if silent else self._flowing.set()

    def lose_answer(self, *, after: bytes, answer: bytes) -> LostAnswer:
        """Lose the next such answer, once."""
        self._lost = LostAnswer(after=after, answer=answer)
        return self._lost

    def cut(self) -> int:
        """Cut every connection with a reset; answers how many there were."""
        cut = [*self._writers]
        for writer in cut:
            writer.transport.abort()
        return len(cut) // 2

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FaultProxy]:
        """Listen on a free port of 127.0.0.1."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_CHUNK)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            for task in [*self._tasks]:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.peak = max(self.peak, self.connections)
        server_writer: asyncio.StreamWriter | None = None
        try:
            server_reader, server_writer = await self._opener()
            self._writers |= {writer, server_writer}
            await self._join(reader, writer, server_reader, server_writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self.connections -= 1
            for one in (writer, server_writer):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()
            self._tasks.discard(task)

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        """Pass bytes both ways until either end closes; both are closed then."""
        sent, answered = _Search(), _Search()
        asked: list[LostAnswer] = []

        def outgoing(chunk: bytes) -> bool:
            if self._lost is not None and self._lost not in asked and sent.found(self._lost.after, chunk):
                asked.append(self._lost)
            return True

        def incoming(chunk: bytes) -> bool:
            if self._lost is None or self._lost not in asked or not answered.found(self._lost.answer, chunk):
                return True
            self._lost.lost.set()
            self._lost = None
            return False

        ways = [
            asyncio.create_task(self._pass(reader, server_writer, outgoing, bandwidth=False)),
            asyncio.create_task(self._pass(server_reader, writer, incoming, bandwidth=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        look: Callable[[bytes], bool],
        *,
        bandwidth: bool,
    ) -> None:
        # A chunk that is under way does not hold up the next one: latency, not a narrow pipe.
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        loop = asyncio.get_running_loop()

        async def deliver() -> None:
            while True:
                due, chunk = await under_way.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._flowing.wait()
                if not look(chunk):
                    return
                if not chunk:
                    return
                pieces = [chunk]
                if bandwidth and self.bandwidth:
                    pieces = [chunk[at : at + 1024] for at in range(0, len(chunk), 1024)]
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    if len(pieces) > 1:
                        await asyncio.sleep(len(piece) / self.bandwidth)

        async def take() -> None:
            while True:
                try:
                    chunk = await reader.read(_CHUNK)
                except OSError:  # a killed process resets what it had not read: that is its end, and passes as one
                    chunk = b""
                await under_way.put((loop.time() + self.latency, chunk))
                if not chunk:
                    return

        taking = asyncio.create_task(take())
        try:
            with contextlib.suppress(OSError):
                await deliver()
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)


def before_tcp(host: str, port: int) -> FaultProxy:
    """A proxy before a TCP server."""
    return FaultProxy(lambda: asyncio.open_connection(host, port, limit=_CHUNK))


def before_postgres(url: str) -> FaultProxy:
    """A proxy before the PostgreSQL of a database address, which may name a socket."""
    place = make_url(url)
    folder, port = place.query.get("host"), place.port or 5432
    if isinstance(folder, str) and folder.startswith("/"):
        path = f"{folder}/.s.PGSQL.{port}"
        return FaultProxy(lambda: asyncio.open_unix_connection(path, limit=_CHUNK))
    return before_tcp(place.host or "127.0.0.1", port)


def url_through(proxy: FaultProxy, url: str) -> str:
    """The same database, reached through a proxy."""
    place = make_url(url)
    query = {name: value for name, value in place.query.items() if name != "host"}
    through = place.set(host="127.0.0.1", port=proxy.port, query=query)
    return through.render_as_string(hide_password=False)
