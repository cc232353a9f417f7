"""What the rows say of a thing: whose it is, or that it is nobody's any more."""

from __future__ import annotations

from typing import Final

from sandboxd.manager.backup_ports import BackupSetNotFoundError
from sandboxd.manager.image_ports import ImageNotFoundError
from sandboxd.manager.ports import UnitOfWork
from sandboxd.manager.rowless import drilled, rowless
from sandboxd.model.abandoned import AbandonedKind, AbandonedReason, Thing
from sandboxd.model.backup import BackupSetId, BackupSetStatus
from sandboxd.model.client import AccountState
from sandboxd.model.erasure import ERASED_MARK
from sandboxd.model.errors import SandboxNotFoundError
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.image import GenerationId
from sandboxd.model.sandbox import SandboxState

_R = AbandonedReason
SETS_OVER: Final = frozenset({BackupSetStatus.DELETED, BackupSetStatus.FAILED})
"""Nothing is restored from these."""


async def reason_of(work: UnitOfWork, thing: Thing) -> AbandonedReason | None:
    """Say why a thing is abandoned; None where it is needed, or may be.

    Args:
        work: A unit of work.
        thing: As its place sees it.
    """
    match thing.kind:
        case AbandonedKind.VOLUME:
            return thing.said or (None if thing.sandbox is None else await _of_volume(work, thing.sandbox))
        case AbandonedKind.LEFTOVER:
            return None if thing.sandbox is not None and await _restoring(work, thing.sandbox) else thing.said
        case AbandonedKind.SNAPSHOT:
            return await _of_set(work, BackupSetId(thing.backup))
        case AbandonedKind.NAMESPACE:
            return None if thing.client is None else await _of_client(work, thing.client)
        case AbandonedKind.UPLOAD:
            return await _of_commit(work, thing.commit) if thing.commit else thing.said
        case AbandonedKind.IMAGE | AbandonedKind.WORK:
            return thing.said


async def _of_volume(work: UnitOfWork, name: SandboxId) -> AbandonedReason | None:
    try:
        sandbox = await work.sandboxes.get(name)
    except SandboxNotFoundError:
        return None if await _is_made(work, name) else _R.NO_ROW
    if sandbox.state is not SandboxState.TERMINATED:
        return None
    if sandbox.state_reason == ERASED_MARK:
        return _R.ERASED
    released = sandbox.volumes_released
    return _R.RELEASED if released is not None and released.end_time is not None else None


async def _is_made(work: UnitOfWork, name: SandboxId) -> bool:
    """Tell whether it is a pool's, which nobody has claimed, or an upgrade or a drill works in it."""
    return name in await work.pools.known([name]) or name in await rowless(work)


async def _restoring(work: UnitOfWork, name: SandboxId) -> bool:
    try:
        return (await work.sandboxes.get(name)).state is SandboxState.RESTORING
    except SandboxNotFoundError:
        return name in await drilled(work)


async def _of_set(work: UnitOfWork, name: BackupSetId) -> AbandonedReason | None:
    try:
        found = await work.backup_sets.get(name)
    except BackupSetNotFoundError:
        return _R.NO_ROW
    return _R.SET_ENDED if found.status in SETS_OVER else None


async def _of_commit(work: UnitOfWork, name: GenerationId) -> AbandonedReason | None:
    """Of an upload nobody but its push knows the address: without a commit at work it is nobody's."""
    try:
        found = await work.generations.get(name)
    except ImageNotFoundError:
        return _R.COMMIT_ENDED
    return None if found.status.in_flight else _R.COMMIT_ENDED


async def _of_client(work: UnitOfWork, name: ClientId) -> AbandonedReason | None:
    found = await work.clients.find(name)
    if found is None:
        return _R.NO_ROW
    return _R.CLIENT_DELETED if found.state is AccountState.DELETED else None
