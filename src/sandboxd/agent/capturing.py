"""One capture from the agent's side: a thread that walks, and the loop that carries messages between it and the peer.

The thread asks the loop for the next batch of the base and hands it each message of frames, and waits for both: so a
slow peer slows the walk, and nothing queues up. It is less urgent than the freelancer's processes, as far as the
kernel lets it be: only a little, because it holds the interpreter's lock now and then, for which the loop waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from sandboxd.agent import codec
from sandboxd.agent.start_marker import StartMarker
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.model.errors import InvalidRequestError
from sandboxd.model.image_errors import CaptureRunningError, CaptureUnsupportedError, PackageManagerBusyError
from sandboxd.model.rootfs import CaptureProgress

T = TypeVar("T")

NICENESS: Final = 5
PACKAGE_WAIT_SECONDS: Final = 60.0
"""Longest wait for an installation that anybody may ask for."""
PACKAGE_RETRY_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RootfsSource:
    """What a capture walks."""

    root: Path | None
    """None where the agent has no root file system of its own."""
    incarnation: str
    marker: StartMarker


class Capturing:
    """Serves captures, one at a time."""

    def __init__(self, source: RootfsSource) -> None:
        self._source = source
        self._running = False

    async def serve(
        self, requests: AsyncIterator[pb.CaptureRequest], send: Callable[[pb.CaptureResponse], Awaitable[None]]
    ) -> None:
        """Serve one.

        Raises:
            InvalidRequestError: The messages are not in their order, or another incarnation is meant.
            CaptureUnsupportedError: There is no root file system to capture.
            CaptureRunningError: Another one runs.
            PackageManagerBusyError: An installation runs, and did not end within the wait.
            PackagesInterruptedError: An installation was killed halfway.
        """
        first = await anext(requests, None)
        if first is None or first.WhichOneof("piece") != "start":
            raise InvalidRequestError("The first message of a capture must carry `start`.")
        if first.start.incarnation != self._source.incarnation:
            raise InvalidRequestError("Another incarnation is meant.", incarnation=self._source.incarnation)
        if self._source.root is None:
            raise CaptureUnsupportedError(
                "This sandbox has no root file system of its own: it runs on the machine's, of which nothing is kept."
            )
        if self._running:
            raise CaptureRunningError(
                "Another capture of this sandbox runs. Try again when it has ended.", retry_after=timedelta(seconds=5)
            )
        self._running = True
        try:
            await _Run(self._source, self._source.root, first.start, requests, send).run()
        finally:
            self._running = False


class _Run:
    def __init__(
        self,
        source: RootfsSource,
        root: Path,
        start: pb.CaptureStart,
        requests: AsyncIterator[pb.CaptureRequest],
        send: Callable[[pb.CaptureResponse], Awaitable[None]],
    ) -> None:
        self._marker_ns = source.marker.nanoseconds
        self._root = root
        self._start = start
        self._requests = requests
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._stopped = False
        self._waiting: concurrent.futures.Future[Any] | None = None  # Any: of either call to the loop

    async def run(self) -> None:
        """Walk in a thread until it has ended, also when this is cancelled."""
        ended: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._thread, args=(ended,), name="capture", daemon=True).start()
        try:
            await asyncio.shield(ended)
        finally:
            self._stop()
            await asyncio.wait([ended])

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._waiting is not None:
                self._waiting.cancel()

    def _thread(self, ended: asyncio.Future[None]) -> None:
        failure: BaseException | None = None
        try:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
            self._work()
        except concurrent.futures.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - the loop raises it
            failure = error
        self._loop.call_soon_threadsafe(_settle, ended, failure)

    def _work(self) -> None:
        # With the first capture: what it needs costs a start its time.
        from sandboxd.agent.rootfs_walk import OPEN_DIRECTORY, Walk, left_out_paths
        from sandboxd.agent.rootfs_wire import batch_from, messages

        with contextlib.ExitStack() as stack:
            root = os.open(self._root, OPEN_DIRECTORY)
            stack.callback(os.close, root)
            self._wait_for_packages(root, stack)
            base = itertools.chain.from_iterable(map(batch_from, self._batches()))
            left_out = left_out_paths(os.fsencode(self._root), tuple(self._start.exclude))
            frames = Walk(root, base, marker_ns=self._marker_ns, left_out=left_out).frames()
            stack.callback(frames.close)  # type: ignore[attr-defined]  # a generator, which lets go of its directories
            for message in messages(frames):
                self._call(self._send(message))

    def _wait_for_packages(self, root: int, stack: contextlib.ExitStack) -> None:
        from sandboxd.agent.package_lock import quiet_packages
        from sandboxd.agent.rootfs_wire import messages

        wait = codec.span_from(self._start.package_wait).total_seconds()
        deadline = time.monotonic() + min(wait, PACKAGE_WAIT_SECONDS)
        while True:
            try:
                stack.enter_context(quiet_packages(root))
            except PackageManagerBusyError:
                if time.monotonic() >= deadline:
                    raise
                self._call(asyncio.sleep(PACKAGE_RETRY_SECONDS))
            else:
                for message in messages([CaptureProgress(entries=0, bytes=0)]):  # the peer waits for it with the base
                    self._call(self._send(message))
                return

    def _batches(self) -> Iterator[pb.BaselineBatch]:
        entries = 0
        while True:
            message = self._call(anext(self._requests, None))
            if message is not None and message.WhichOneof("piece") == "baseline":
                entries += len(message.baseline.paths)
                yield message.baseline
            elif message is not None and message.WhichOneof("piece") == "end" and message.end.entries == entries:
                return
            else:
                raise InvalidRequestError("The base is not complete: its last message must be `end`, and count it.")

    def _call(self, work: Awaitable[T]) -> T:
        """Let the loop do something, and wait for it; ends the thread when the capture was stopped."""
        waiting = asyncio.run_coroutine_threadsafe(_awaited(work), self._loop)
        with self._lock:
            self._waiting = waiting
            if self._stopped:
                waiting.cancel()
        return waiting.result()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def _settle(ended: asyncio.Future[None], failure: BaseException | None) -> None:
    if ended.done():
        return
    if failure is None:
        ended.set_result(None)
    else:
        ended.set_exception(failure)
