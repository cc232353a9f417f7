"""The one place where children are waited for: processes that we started, and orphans that the kernel gave us.

The agent is PID 1 of its container or a child subreaper: a descendant whose parent dies becomes ours, so the tree of
our descendants is complete and none of them can leave it. Nothing else in the agent may wait for a child.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36

LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Reaper:
    """Reaps every child and tells the exit of those that somebody registered."""

    def __init__(self) -> None:
        self._expected: dict[int, Callable[[int], None]] = {}
        self.cpu_time = timedelta()
        """Processor time of all children that were reaped, with that of the children they had waited for."""

    def install(self) -> None:
        """Become the parent of orphans, and listen for the end of children on the running loop.

        Raises:
            OSError: The kernel refuses.
        """
        if os.getpid() != 1 and LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "the kernel refuses to make this process a child subreaper")
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def expect(self, pid: int, exited: Callable[[int], None]) -> None:
        """Register a child. Must be called in the same step of the loop that started it.

        Args:
            pid: The child.
            exited: Called once with its wait status, after it was reaped.
        """
        self._expected[pid] = exited

    def reap(self) -> None:
        """Reap every child that has ended. Several ends may share one SIGCHLD."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.cpu_time += timedelta(seconds=usage.ru_utime + usage.ru_stime)
            exited = self._expected.pop(pid, None)
            if exited is not None:
                exited(status)
