"""Tells open streams what changed of their sandbox's packages, whichever replica came to know it.

Hints say when to look; they may be lost, so everybody who is followed is looked at now and then, in one query.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from sandboxd.manager.changes import Changes
from sandboxd.manager.followers import Followers
from sandboxd.manager.package_ports import ChangeSelection
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import SandboxId
from sandboxd.model.package_history import KeptChange

MAX_TOLD: Final = 50
"""Changes of one event; more are counted."""

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
        self._followers = Followers[PackageTidings](changes)
        self._told: dict[SandboxId, int] = {}

    async def follow(self, sandbox: SandboxId) -> AsyncIterator[PackageTidings]:
        """Changes of a sandbox's packages from now on, for ever; their numbers show what a slow reader has missed."""
        try:
            with self._followers.join(sandbox) as queue:
                if sandbox not in self._told:
                    await self._look({sandbox})
                while True:
                    yield await queue.get()
        finally:
            if sandbox not in self._followers:
                self._told.pop(sandbox, None)

    async def run(self) -> None:
        """Look at what changes until cancelled."""
        await self._followers.run(self._look)

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
                            self._followers.tell(sandbox, tidings)
                            number = newest[0].number
                    if sandbox in self._followers:
                        self._told[sandbox] = max(number, told or 0)
        except SandboxdError as error:
            log.info("packages.tidings_not_read", error=error.message)
