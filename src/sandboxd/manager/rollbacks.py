"""Another image for a sandbox's next starts, because somebody says so; and whether what runs goes on from that one."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Final

from sandboxd.manager.ports import UnitOfWork
from sandboxd.model.commit_errors import ImageUnusableError
from sandboxd.model.image import CommitTrigger, Generation, GenerationStatus
from sandboxd.model.sandbox import Sandbox

_G: Final = GenerationStatus


async def roll_to(work: UnitOfWork, sandbox: Sandbox, wanted: Generation, *, at: datetime) -> Generation:
    """Make a generation the active one of a sandbox, whose row is locked; answers it.

    Raises:
        ImageUnusableError: Nothing can be started from it.
    """
    locked = await work.generations.get(wanted.id, for_update=True)
    if not locked.bootable or locked.status is _G.VERIFIED:
        raise ImageUnusableError(
            f"Sandbox {sandbox.id} cannot start from {locked.tag}: it is {locked.status.value}"
            f"{'' if locked.verify_time else ' and was never booted'}.",
            sandbox=sandbox.id,
            image=locked.tag,
            status=locked.status.value,
        )
    if locked.status is _G.ACTIVE:
        return locked
    follows = await _follows(work, sandbox, locked)
    if sandbox.image is not None:
        former = await work.generations.get(sandbox.image.generation, for_update=True)
        await work.generations.save(former.enter(_G.SUPERSEDED, at=at))
    active = replace(locked.enter(_G.ACTIVE, at=at), given_up=None if follows else sandbox.incarnation)
    await work.generations.save(active)
    await work.sandboxes.save(replace(sandbox, image=active.image, update_time=at, version=sandbox.version + 1))
    return active


async def _follows(work: UnitOfWork, sandbox: Sandbox, wanted: Generation) -> bool:
    """Tell whether what the sandbox's last life has goes on from an image, as where somebody rolls forward to it.

    Of a life that is over that is said of its packages, which an upgrade makes again.
    """
    life = sandbox.incarnation
    if life is None or sandbox.image is None:  # from the base no image goes on
        return False
    if wanted.trigger is CommitTrigger.UPGRADE and wanted.incarnation == life:
        return True  # it was made of them
    followed = await work.generations.followed(sandbox.id, life)
    return followed is not None and followed.id == wanted.id
