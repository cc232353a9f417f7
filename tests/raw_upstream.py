"""An upstream that answers bytes of the test's choice, whatever HTTP says about them, and watches what that costs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import psutil

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class RawUpstream:
    """One address that reads a request whole and then lets a script answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.url = ""
        self.requests = 0
        self.sent = 0
        """Bytes that scripts have written with `send`."""
        self.gone = asyncio.Event()
        """Set when the other side has closed before the script had ended."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RawUpstream]:
        """Listen on a free port of 127.0.0.1."""
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.lower().splitlines()
                    if line.startswith(b"content-length:")
                )
                await reader.readexactly(length)
                self.requests += 1
                await self._answer(writer)
                await writer.drain()
            except (OSError, asyncio.IncompleteReadError):
                self.gone.set()
            finally:
                tasks.discard(task)
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in [*tasks]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class PeakMemory:
    """What this process's memory grew to at its highest, above where it began."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._ended = threading.Event()
        self.start = self._process.memory_info().rss
        self.peak = self.start

    @property
    def grown(self) -> int:
        return self.peak - self.start

    def watch(self) -> None:
        while not self._ended.wait(0.002):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def end(self) -> None:
        self._ended.set()


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Watch the memory of this process from a thread of its own."""
    memory = PeakMemory()
    thread = threading.Thread(target=memory.watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        memory.end()
        thread.join()
