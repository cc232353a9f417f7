"""Freeze and thaw: SIGSTOP to everything, parents first, until nothing new appears; SIGCONT back, leaves first.

The order matters: a shell that still runs while its child stops would say "Stopped" and take the terminal back. Stopped
first, it sees nothing; and continued last, it finds its child running. First means *seen* stopped, level by level: a
shell that waits for a child has its signal pending until it is scheduled, and would be told of the child before that.
What was stopped before is left alone and stays.
"""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta

from sandboxd.agent import proctree
from sandboxd.agent.proctree import Entry
from sandboxd.model.processes import FreezeResult
from sandboxd.stream.agent_port import FreezeIncompleteError

STEP_SECONDS = 0.002
"""Pause between two looks: the kernel stops a process when it next returns to user mode, not at once."""


class Freezer:
    """Remembers what it has stopped."""

    def __init__(self) -> None:
        self._stopped: dict[tuple[int, int], Entry] = {}
        self._strangers: set[tuple[int, int]] = set()
        self._lock = asyncio.Lock()
        self.frozen = False
        """True from the beginning of a freeze until the thaw."""

    async def freeze(self, *, timeout: timedelta) -> FreezeResult:
        """Stop every descendant of the agent.

        Args:
            timeout: How long to try.

        Raises:
            FreezeIncompleteError: Something still ran at the end of that time. Nothing is thawed.
        """
        async with self._lock:
            self.frozen = True
            try:
                async with asyncio.timeout(timeout.total_seconds()):
                    while not await self._step():
                        await asyncio.sleep(STEP_SECONDS)
            except TimeoutError as error:
                raise FreezeIncompleteError(
                    "Some processes could not be stopped in time: they wait inside the kernel. Try again, or thaw."
                ) from error
            return FreezeResult(frozen_processes=len(self._stopped), already_stopped_processes=len(self._strangers))

    async def thaw(self) -> int:
        """Continue what `freeze` stopped, and return how many are there to continue."""
        async with self._lock:
            leaves_first = reversed(list(self._stopped.values()))
            count = proctree.send(leaves_first, signal.SIGCONT)
            self._stopped.clear()
            self._strangers.clear()
            self.frozen = False
            return count

    async def _step(self) -> bool:
        """Look once and stop what runs. True when everything was stopped already, so the set is stable."""
        entries = [entry for entry in proctree.descendants(os.getpid()).values() if entry.live]
        running = {(entry.pid, entry.start): entry for entry in entries if not entry.stopped}
        stopped = {(entry.pid, entry.start) for entry in entries if entry.stopped}
        # Stopped, and not by us: by a shell's job control, a debugger, or another freeze than ours. It stays so.
        self._strangers = stopped - self._stopped.keys()
        before = self._stopped
        # Keep them in the order of the tree as it is now: thawing goes the other way.
        ours = {(entry.pid, entry.start): entry for entry in entries}
        self._stopped = {key: entry for key, entry in ours.items() if key not in self._strangers}
        for level in _levels(entries):
            sent = [entry for entry in level if not entry.stopped]
            proctree.send(sent, signal.SIGSTOP)
            while not all(_settled(entry) for entry in sent):
                await asyncio.sleep(STEP_SECONDS)
        # Who waits inside the kernel (state D) with our signal pending runs no instruction of its own any more. It must
        # count as stopped: after vfork a parent waits so for its child's exec, and that child is stopped by us. On the
        # way back the child goes first, and the parent's pending stop is taken away before it returns.
        return all(entry.state == "D" and key in before for key, entry in running.items())


def _levels(entries: list[Entry]) -> list[list[Entry]]:
    """Group processes, parents before children, by how many of them are above each."""
    depths: dict[int, int] = {}
    levels: list[list[Entry]] = []
    for entry in entries:
        depth = depths[entry.pid] = depths.get(entry.parent, -1) + 1
        if depth == len(levels):
            levels.append([])
        levels[depth].append(entry)
    return levels


def _settled(entry: Entry) -> bool:
    """True when a process that was sent a stop sees nothing more: stopped, inside the kernel, ended, or gone."""
    present = proctree.read_entry(entry.pid)
    return present is None or present.start != entry.start or present.stopped or present.state in "DZX"
