"""Tells open streams what changed of their sandbox's packages, whichever replica came to know it.

Hints say when to look; they may be lost, so everybody who is followed is looked at now and then, in one query.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from sandboxd.manager.changes import Changes
from sandboxd.manager.package_ports import ChangeSelection
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import SandboxId
from sandboxd.model.package_history import KeptChange

LOOK_SECONDS: Final = 30.0
MAX_TOLD: Final = 50
"""Changes of one event; more are counted."""
MAX_PENDING: Final = 16
"""Events that one slow stream may leave unread; the oldest is let fall, and numbers show that."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageTidings:
    """What a stream tells its client."""

    changes: Sequence[KeptChange]
    """The newest, by number; at least one."""
    after_number: int
    """All changes beyond this one are meant."""
    last_number: int


class PackageTelling:
    """One a replica; `run` must run beside it."""

    def __init__(self, *, units: UnitsOfWork, changes: Changes) -> None:
        self._units = units
        self._changes = changes
        self._followers: defaultdict[SandboxId, set[asyncio.Queue[PackageTidings]]] = defaultdict(set)
        self._told: dict[SandboxId, int] = {}

    async def follow(self, sandbox: SandboxId) -> AsyncIterator[PackageTidings]:
        """Changes of a sandbox's packages from now on, for ever."""
        queue = asyncio.Queue[PackageTidings](MAX_PENDING)
        self._followers[sandbox].add(queue)
        try:
            if sandbox not in self._told:
                await self._look({sandbox})
            while True:
                yield await queue.get()
        finally:
            self._followers[sandbox].discard(queue)
            if not self._followers[sandbox]:
                del self._followers[sandbox]
                self._told.pop(sandbox, None)

    async def run(self) -> None:
        """Look at what changes until cancelled."""
        with self._changes.feed() as feed:
            while True:
                changed = await feed.take(timeout=LOOK_SECONDS)
                await self._look(self._followers.keys() if changed is None else self._followers.keys() & changed)

    async def _look(self, sandboxes: Collection[SandboxId]) -> None:
        """Tell followers what is new; whoever is looked at for the first time begins with now."""
        if not sandboxes:
            return
        try:
            async with self._units.begin() as work:
                numbers = await work.packages.numbers(sandboxes)
                for sandbox in list(sandboxes):
                    number, told = numbers.get(sandbox, 0), self._told.get(sandbox)
                    if told is not None and number > told:
                        where = ChangeSelection(after_number=told)
                        newest = await work.packages.changes(sandbox, where, limit=MAX_TOLD, falling=True)
                        if newest:
                            tidings = PackageTidings(
                                changes=newest[::-1], after_number=told, last_number=newest[0].number
                            )
                            self._tell(sandbox, tidings)
                            number = newest[0].number
                    if sandbox in self._followers:
                        self._told[sandbox] = max(number, told or 0)
        except SandboxdError as error:
            log.info("packages.tidings_not_read", error=error.message)

    def _tell(self, sandbox: SandboxId, tidings: PackageTidings) -> None:
        for queue in self._followers.get(sandbox, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(tidings)
