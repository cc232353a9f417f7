"""Copies between a gRPC stream and the disk: a thread that blocks on files, a pipe, and the loop at its other end.

The pipe is the bound: a slow disk or a slow peer blocks the other side, and nothing queues up between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import IO

from sandboxd.agent.broadcast import Broadcast
from sandboxd.model.processes import CopyResult

CHUNK_BYTES = 1 << 18


async def feed(pieces: AsyncIterator[bytes], work: Callable[[IO[bytes]], CopyResult]) -> CopyResult:
    """Let a thread read what a stream brings, and return the thread's result.

    Args:
        pieces: The bytes.
        work: Runs in the thread with a file to read them from.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write, False)
    worker = asyncio.create_task(asyncio.to_thread(_with_file, read, "rb", work), name="copy-in")
    try:
        with contextlib.suppress(BrokenPipeError):  # the thread has ended early: its error tells more
            async for piece in pieces:
                await _write_all(write, piece)
    finally:
        os.close(write)
        await _settle(worker)
    return worker.result()


async def drain(work: Callable[[IO[bytes]], CopyResult]) -> AsyncGenerator[bytes | CopyResult, None]:
    """Yield what a thread writes, then the thread's result.

    Args:
        work: Runs in the thread with a file to write to.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    worker = asyncio.create_task(asyncio.to_thread(_with_file, write, "wb", work), name="copy-out")
    try:
        while data := await _read_some(read):
            yield data
    finally:
        os.close(read)
        await _settle(worker)
    yield worker.result()


def _with_file(descriptor: int, mode: str, work: Callable[[IO[bytes]], CopyResult]) -> CopyResult:
    with os.fdopen(descriptor, mode, buffering=1 << 16) as file:
        return work(file)


async def _settle(worker: asyncio.Task[CopyResult]) -> None:
    """Wait for the thread, whose pipe is closed, so that it ends soon. A cancellation meanwhile is kept for later."""
    await asyncio.wait([worker])
    if not worker.cancelled():
        worker.exception()


async def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            await _until(asyncio.get_running_loop().add_writer, asyncio.get_running_loop().remove_writer, descriptor)


async def _read_some(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, CHUNK_BYTES)
        except BlockingIOError:
            await _until(asyncio.get_running_loop().add_reader, asyncio.get_running_loop().remove_reader, descriptor)


async def _until(
    add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool], descriptor: int
) -> None:
    ready = Broadcast()
    add(descriptor, ready.notify)
    try:
        await ready.wait()
    finally:
        remove(descriptor)
