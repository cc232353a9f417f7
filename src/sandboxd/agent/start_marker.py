"""The moment before the freelancer's first process, in the clock by which the kernel stamps changes of files.

Whatever changes a file sets its change time (ctime) to now, and no program can set it to anything else: what is not
older than this moment was changed in the sandbox, what is older came with the image.

A wall clock that is set back makes later changes look older than the start. So the moment is remembered on the clock
that nobody sets (CLOCK_BOOTTIME), and is translated to the wall clock at each of its steps, which the kernel tells by
a timer (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET); the earliest of all translations counts. Too early is safe: files
that came with the image are then looked at once more, and what reads the difference finds them equal.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sandboxd.agent.reaper import LIBC

SPARE_NS: Final = 50_000_000
"""Two readings of two clocks are never of one moment, and slewing moves them against each other; a step is more."""
_FAR_SECONDS: Final = 1 << 33
"""A moment that does not come: the year 2242."""
_CANCEL_ON_SET: Final = 3
"""TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET."""
_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC
_TIMER: Final = ctypes.c_long * 4


def wall_over_boot() -> int:
    """By how many nanoseconds the wall clock is ahead of the boot clock."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class StartMarker:
    """Knows that moment, as early as any setting of the clock since has made it look."""

    def __init__(self, moment_ns: int, *, offset: Callable[[], int] = wall_over_boot) -> None:
        """Take the moment.

        Args:
            moment_ns: A change time that a file got now.
            offset: By how much the wall clock is ahead of one that nobody sets.
        """
        self._offset = offset
        self._boot_ns = moment_ns - offset()
        self._earliest = moment_ns
        self._timer = -1

    @property
    def nanoseconds(self) -> int:
        """Change times from here on are changes of the sandbox."""
        self.look()
        return self._earliest

    def look(self) -> None:
        """Take note of how the clock stands now."""
        now = self._boot_ns + self._offset()
        if now < self._earliest - SPARE_NS:
            self._earliest = now - SPARE_NS

    def watch(self) -> None:
        """Take note of each step of the clock from now on, on the running loop.

        Best effort: where the kernel has no such timer, only steps that are not taken back are noticed.
        """
        self._timer = LIBC.timerfd_create(time.CLOCK_REALTIME, _NONBLOCK_CLOEXEC)
        if self._timer >= 0:
            self._arm()
            asyncio.get_running_loop().add_reader(self._timer, self._stepped)

    def close(self) -> None:
        """Watch no longer."""
        if self._timer >= 0:
            asyncio.get_running_loop().remove_reader(self._timer)
            os.close(self._timer)
            self._timer = -1

    def _arm(self) -> None:
        LIBC.timerfd_settime(self._timer, _CANCEL_ON_SET, ctypes.byref(_TIMER(0, 0, _FAR_SECONDS, 0)), None)

    def _stepped(self) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return
        except OSError:  # ECANCELED: the clock was set
            pass
        self._arm()
        self.look()


def mark_start(directory: Path) -> StartMarker:
    """Let the kernel stamp a file in that directory now; nothing of it stays.

    Raises:
        OSError: No file can be made there.
    """
    file = directory / f".start-{os.getpid()}"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o400)  # a change, also of a file that was there
        return StartMarker(os.fstat(descriptor).st_ctime_ns)
    finally:
        os.close(descriptor)
        file.unlink()
