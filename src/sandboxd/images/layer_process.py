"""Writes layers in processes of their own, a few at once: implements `LayerWriter`.

Frames go to the worker as it takes them, and no faster. Whatever happens (an error, a deadline, a caller who leaves, a
worker that is killed), no process stays, and nothing in the directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Final

import structlog
from typing_extensions import override

from sandboxd.images.layer_job import remove_files
from sandboxd.images.layer_wire import decode_answer, encode, encode_order
from sandboxd.images.layer_worker import CRASHED, NO_SPACE
from sandboxd.images.ports import BuildProgress, LayerOrder, LayerWriter, WrittenLayer
from sandboxd.model.errors import DeadlineError, SandboxdError
from sandboxd.model.image_errors import (
    BaselineDamagedError,
    CaptureInvalidError,
    FileTornError,
    ImageTooLargeError,
    LayerWriterFailedError,
    SecretsFoundError,
)
from sandboxd.model.rootfs import CaptureEnd, CaptureFrame, CaptureProgress

log = structlog.get_logger(__name__)

WORKERS: Final = 2
"""At once: each takes a processor and some 50 MB, and a service has sessions to stream meanwhile."""
COMMAND: Final = (sys.executable, "-I", "-m", "sandboxd.images.layer_worker")
_BATCH_BYTES: Final = 1 << 17
"""Frames are put together up to this; then the worker has to have room for them."""
_ANSWER_BYTES: Final = 1 << 20
"""Fifty times the longest answer."""
_CPU_SECONDS: Final = 10
"""Beyond the deadline, which comes first: this one ends a worker whose service has died."""
_REAP_SECONDS: Final = 10.0
"""A killed process is gone at once, unless its disk does not answer."""
_ERRORS: Final[dict[str, type[SandboxdError]]] = {
    one.__name__: one
    for one in (BaselineDamagedError, CaptureInvalidError, FileTornError, ImageTooLargeError, SecretsFoundError)
}


class WorkerLayerWriter(LayerWriter):
    """Writes in workers."""

    def __init__(self, *, workers: int = WORKERS, command: Sequence[str] = COMMAND) -> None:
        """Take the parts.

        Args:
            workers: At most so many at once; others wait for their turn, and their captures have not begun.
            command: Starts one.
        """
        self._turns = asyncio.Semaphore(workers)
        self._command = tuple(command)

    @override
    async def write(
        self,
        frames: AsyncIterator[CaptureFrame],
        order: LayerOrder,
        *,
        timeout: timedelta,
        progress: Callable[[BuildProgress], None],
    ) -> WrittenLayer:
        deadline = time.monotonic() + timeout.total_seconds()
        scope = asyncio.timeout(timeout.total_seconds())
        try:
            async with scope, self._turns:
                left = max(deadline - time.monotonic(), 0)
                return await self._write(frames, order, cpu_seconds=math.ceil(left) + _CPU_SECONDS, progress=progress)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineError("The layer was not written in time.") from error
        finally:
            close = getattr(frames, "aclose", None)  # a generator: the capture ends with whoever reads it
            if close is not None:
                await close()

    async def _write(
        self,
        frames: AsyncIterator[CaptureFrame],
        order: LayerOrder,
        *,
        cpu_seconds: int,
        progress: Callable[[BuildProgress], None],
    ) -> WrittenLayer:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={},  # nothing of ours: no key, no address
                limit=_ANSWER_BYTES,
                start_new_session=True,
            )
        except OSError as error:
            raise LayerWriterFailedError("The process that writes layers cannot be started.") from error
        written = False
        try:
            layer = await _talk(process, frames, encode_order(order, cpu_seconds=cpu_seconds), progress)
            written = True
            return layer
        finally:
            try:
                await _end(process)
            finally:
                if not written:
                    remove_files(order)


async def _talk(
    process: Process, frames: AsyncIterator[CaptureFrame], order: bytes, progress: Callable[[BuildProgress], None]
) -> WrittenLayer:
    """Send all, and return the answer; an answer before the end is an error and ends the sending."""
    sending = asyncio.create_task(_send(process, frames, order, progress), name="layer frames")
    answering = asyncio.create_task(_answer(process), name="layer answer")
    try:
        await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
        return await answering
    finally:
        for task in (sending, answering):
            task.cancel()
        await asyncio.gather(sending, answering, return_exceptions=True)


async def _send(
    process: Process, frames: AsyncIterator[CaptureFrame], order: bytes, progress: Callable[[BuildProgress], None]
) -> None:
    pipe = process.stdin
    assert pipe is not None
    batch = bytearray(order)
    # A worker that has gone says why, or its exit code does.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        async for frame in frames:
            batch += encode(frame)
            if isinstance(frame, CaptureProgress | CaptureEnd):
                progress(BuildProgress(phase="capture", entries=frame.entries, bytes=frame.bytes))
            elif len(batch) < _BATCH_BYTES:
                continue
            pipe.write(bytes(batch))
            batch.clear()
            await pipe.drain()
        pipe.write(bytes(batch))
        await pipe.drain()
        pipe.close()
        await pipe.wait_closed()


async def _answer(process: Process) -> WrittenLayer:
    pipe = process.stdout
    assert pipe is not None
    try:
        line = await pipe.readline()
    except ValueError as error:  # longer than the limit
        raise LayerWriterFailedError("The process that writes layers answered with what is no answer.") from error
    if not line.endswith(b"\n"):
        raise LayerWriterFailedError(f"The process that writes layers {_fate(await process.wait())}. Try again.")
    try:
        answer = decode_answer(line)
    except ValueError as error:
        raise LayerWriterFailedError("The process that writes layers answered with what is no answer.") from error
    if isinstance(answer, WrittenLayer):
        return answer
    raise _error(*answer)


def _error(name: str, message: str, metadata: dict[str, str]) -> SandboxdError:
    if name in _ERRORS:
        return _ERRORS[name](message, retry_after=None, **metadata)
    if name == NO_SPACE:
        return LayerWriterFailedError("There is no room on the service's disk to write the layer. Try again later.")
    if name == CRASHED:
        log.error("image.layer_worker_crashed", traceback=message)
    return LayerWriterFailedError("The process that writes layers has failed. Try again.")


def _fate(code: int) -> str:
    if code >= 0:
        return f"ended with code {code} and without an answer"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


async def _end(process: Process) -> None:
    """Let no process stay."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    try:
        async with asyncio.timeout(_REAP_SECONDS):
            await process.wait()
    except TimeoutError:
        log.error("image.layer_worker_stays", pid=process.pid)  # noqa: TRY400 - where it hangs is not here
