"""The image that a backup set has, for the sandbox that is restored: its own, or one of the sandbox it was taken of.

An image of another sandbox becomes one of this one's by a row of its own with the same digest: both lie in the
repository of one freelancer, whose images nobody else starts from.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sandboxd.manager.ports import MAX_PAGE_SIZE, UnitOfWork
from sandboxd.model.backup import BackupSet
from sandboxd.model.commit_errors import ImageUnusableError
from sandboxd.model.ids import SandboxId
from sandboxd.model.image import CommitTrigger, Generation, GenerationId, GenerationStatus
from sandboxd.model.sandbox import Sandbox
from sandboxd.model.sources import IdSource

_G = GenerationStatus


async def image_of(work: UnitOfWork, sandbox: Sandbox, chosen: BackupSet) -> Generation | None:
    """The image that a set has, of this sandbox or of the one that it was taken of; None for the template's.

    Raises:
        ImageUnusableError: It is none that a sandbox of this freelancer can be started from any more.
    """
    if not chosen.image:
        return None
    owner = (sandbox.client, sandbox.freelancer)
    for place in dict.fromkeys((sandbox.id, chosen.sandbox)):
        found = await _bootable(work, place, chosen.image)
        if found is not None and (found.client, found.freelancer) == owner:
            return found
    raise ImageUnusableError(
        f"Sandbox {sandbox.id} cannot start from the image of backup {chosen.id}: it is kept no more. "
        "Restore its workspace alone, or paths of it.",
        sandbox=sandbox.id,
        image=chosen.image,
    )


async def switch(
    work: UnitOfWork, sandbox: Sandbox, wanted: Generation | None, *, at: datetime, ids: IdSource
) -> Sandbox:
    """Let a sandbox's next start take this image, and write that the one before is superseded."""
    present = None if sandbox.image is None else sandbox.image.generation
    if present == (None if wanted is None else wanted.id):
        return sandbox
    if present is not None:
        former = await work.generations.get(present, for_update=True)
        if former.status is _G.ACTIVE:
            await work.generations.save(former.enter(_G.SUPERSEDED, at=at))
    if wanted is None:
        return replace(sandbox, image=None)
    if wanted.sandbox != sandbox.id:
        active = await _taken_on(work, sandbox, wanted, at=at, ids=ids)
    else:
        locked = await work.generations.get(wanted.id, for_update=True)
        active = locked if locked.status is _G.ACTIVE else locked.enter(_G.ACTIVE, at=at)
        if active is not locked:
            await work.generations.save(active)
    return replace(sandbox, image=active.image)


async def _bootable(work: UnitOfWork, sandbox: SandboxId, reference: str) -> Generation | None:
    page = await work.generations.list(sandbox, everything=True, page_size=MAX_PAGE_SIZE, page_token="")
    return next((one for one in page.items if one.reference == reference and one.bootable), None)


async def _taken_on(
    work: UnitOfWork, sandbox: Sandbox, source: Generation, *, at: datetime, ids: IdSource
) -> Generation:
    """Insert a row of this sandbox's own for an image that is there: it was pushed, and booted once."""
    one = await work.generations.begin(
        Generation(
            id=GenerationId(ids.new("gen")),
            sandbox=sandbox.id,
            client=sandbox.client,
            freelancer=sandbox.freelancer,
            number=1,
            incarnation=source.incarnation,
            trigger=CommitTrigger.RESTORE,
            registry=source.registry,
            repository=source.repository,
            base=source.base,
            content=source.content,
            create_time=at,
            update_time=at,
        )
    )
    for status in (_G.PUSHED, _G.VERIFIED, _G.ACTIVE):
        one = one.enter(status, at=at)
        await work.generations.save(one)
    listed = await work.sboms.get(source.id)
    if listed is not None:
        again = replace(listed, generation=one.id, attached=None, attempts=0, failure="", next_time=at)
        await work.sboms.add(again)
    return one
