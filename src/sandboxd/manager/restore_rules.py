"""What may be restored into what."""

from __future__ import annotations

from dataclasses import replace

from sandboxd.manager.access import require_visible
from sandboxd.manager.backup_ports import BackupSetNotFoundError
from sandboxd.manager.ports import UnitOfWork
from sandboxd.model.backup import BackupSet, BackupSetId, BackupSetStatus, BackupSetStatusError, Restoring, Volume
from sandboxd.model.backup_errors import BackupHomeError, RestoreCancelledError
from sandboxd.model.caller import Caller
from sandboxd.model.errors import InternalError, SandboxNotFoundError
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import Sandbox, SandboxState


async def usable_set(work: UnitOfWork, caller: Caller, backup: tuple[SandboxId, BackupSetId]) -> BackupSet:
    """The set that a caller names to restore from, and whose it is; locked, so that nobody begins to delete it now.

    Raises:
        BackupSetNotFoundError: The caller has no such sandbox, or that no such set.
        BackupSetStatusError: It is not complete.
    """
    found = await work.backup_sets.get(backup[1], for_update=True)
    try:
        require_visible(await work.sandboxes.get(found.sandbox), caller)
    except SandboxNotFoundError as error:
        raise BackupSetNotFoundError(backup[1]) from error
    if found.sandbox != backup[0]:
        raise BackupSetNotFoundError(backup[1])
    if found.status is not BackupSetStatus.COMPLETE:
        raise BackupSetStatusError(found, wanted=BackupSetStatus.COMPLETE)
    return found


def require_for(sandbox: Sandbox, chosen: BackupSet, wanted: Restoring) -> None:
    """Return where a set's content may come into a sandbox: a home is its freelancer's, a workspace the client's.

    Raises:
        BackupSetNotFoundError: It is of another client.
        BackupHomeError: It is another freelancer's, and more than its workspace is wanted.
    """
    if chosen.client != sandbox.client:
        raise BackupSetNotFoundError(chosen.id)
    if chosen.freelancer != sandbox.freelancer and (wanted.whole or wanted.wants(Volume.HOME)):
        raise BackupHomeError(
            f"Backup {chosen.id} has the home and the image of freelancer {chosen.freelancer}. Into a sandbox of "
            f"{sandbox.freelancer} its workspace alone can come: say workspace_only, or paths in the workspace.",
            backup=chosen.id,
            freelancer=sandbox.freelancer,
        )


def is_new(sandbox: Sandbox) -> bool:
    """Tell whether a sandbox never lived: its restore makes it, and there is nothing in it to lose."""
    return sandbox.incarnation is None


def hint_for(sandbox: Sandbox) -> str:
    """Say what lets a sandbox be restored that cannot be as it is."""
    if sandbox.state in (SandboxState.ACTIVE, SandboxState.HIBERNATED):
        return "Pause it first."
    return ""


def may_lose(sandbox: Sandbox) -> bool:
    """Tell whether there is anything in its volumes that is not in a set that brings it back."""
    return sandbox.volumes_released is None and not is_new(sandbox)


def still_wanted(sandbox: Sandbox) -> Restoring:
    """Return what a sandbox gets back.

    Raises:
        RestoreCancelledError: Nobody wishes it any more.
    """
    restoring = sandbox.restoring
    if restoring is None:
        raise InternalError(f"Sandbox {sandbox.id} is RESTORING, and nothing says what.")
    if restoring.cancelled:
        raise cancelled(sandbox.id)
    return restoring


async def placing(_: UnitOfWork, sandbox: Sandbox) -> Sandbox:
    """Write that what is there begins to change: from here on nobody can wish any more that it does not."""
    return replace(sandbox, restoring=replace(still_wanted(sandbox), placing=True), version=sandbox.version + 1)


def cancelled(sandbox: SandboxId) -> RestoreCancelledError:
    """Say that somebody has ended a restore."""
    return RestoreCancelledError(f"The restore of sandbox {sandbox} was cancelled.", sandbox=sandbox)
