"""Sandboxes of the backend that have no row and are somebody's work: what upgrades build in, and what drills boot."""

from __future__ import annotations

from typing import Final

from sandboxd.manager.ports import UnitOfWork
from sandboxd.model.drill import drill_sandbox
from sandboxd.model.ids import SandboxId
from sandboxd.model.image import CommitTrigger, Generation, build_sandbox

PAGE: Final = 500
"""Rows that one read answers."""


async def upgrades_in_flight(work: UnitOfWork) -> list[Generation]:
    """All upgrades that go on, one at most for each sandbox."""
    found, after = list[Generation](), None
    while True:
        page = await work.generations.unfinished(limit=PAGE, after=after, trigger=CommitTrigger.UPGRADE)
        found += page
        if len(page) < PAGE:
            return found
        after = page[-1].id


async def drilled(work: UnitOfWork) -> frozenset[SandboxId]:
    """Those of drills that go on."""
    return frozenset(drill_sandbox(one.id) for one in await work.drills.unfinished())


async def rowless(work: UnitOfWork) -> frozenset[SandboxId]:
    """All that somebody works in."""
    return await drilled(work) | {build_sandbox(one.id) for one in await upgrades_in_flight(work)}
