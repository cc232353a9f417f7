"""Ctrl-C as an event of the program's own, instead of the end of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_interrupt(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` in the event loop at each Ctrl-C while the block lasts.

    Not by `loop.add_signal_handler`: prompt_toolkit takes that one for each line it reads, and takes it away at the end
    of the line. A handler of the process it puts back.
    """
    loop = asyncio.get_running_loop()
    before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(handle))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
