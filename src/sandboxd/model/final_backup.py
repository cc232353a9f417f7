"""What a terminated sandbox is backed up as: the set of what it left, or what became of it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sandboxd.model.backup import BackupSet, BackupSetStatus
from sandboxd.model.erasure import ERASED_MARK
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.volume_release import end_among

NO_VOLUMES: Final = "VOLUMES_NOT_FOUND"
"""Failure of a set of a sandbox that never had volumes, or has none any more."""


class FinalBackupState(enum.Enum):
    """How far it is."""

    PENDING = "pending"
    """Nobody has begun it; policy will. Its files are where they were."""
    CREATING = "creating"
    COMPLETE = "complete"
    FAILED = "failed"
    """It came to nothing so far; policy tries again. Its files are where they were."""
    EMPTY = "empty"
    """There were no volumes."""
    DELETED = "deleted"
    """There was one, and it is gone or going."""
    OFF = "off"
    """Nothing is backed up after terminate here. Its files are where they were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalBackup:
    """What a terminated sandbox is backed up as."""

    state: FinalBackupState
    backup: BackupSet | None = None
    """Of all states but PENDING and OFF."""


_S = FinalBackupState
_OF_STATUS: Final = {
    BackupSetStatus.COMPLETE: _S.COMPLETE,
    BackupSetStatus.CREATING: _S.CREATING,
    BackupSetStatus.FAILED: _S.FAILED,
    BackupSetStatus.DELETING: _S.DELETED,
    BackupSetStatus.DELETED: _S.DELETED,
}


def final_backup(sandbox: Sandbox, sets: Sequence[BackupSet], *, wanted: bool) -> FinalBackup | None:
    """Say what a terminated sandbox is backed up as; None of one that is not terminated, or was erased.

    Args:
        sandbox: Which.
        sets: Its newest sets, the newest first, those that are gone among them.
        wanted: Policy backs up what terminated sandboxes leave.
    """
    ended = sandbox.terminate_time
    if sandbox.state is not SandboxState.TERMINATED or ended is None or sandbox.state_reason == ERASED_MARK:
        return None
    if (whole := end_among(sets, sandbox)) is not None:
        return FinalBackup(state=_S.COMPLETE, backup=whole)
    since = [one for one in sets if one.create_time >= ended]
    for state in (_S.COMPLETE, _S.CREATING, _S.DELETED, _S.EMPTY, _S.FAILED):
        found = next((one for one in since if _stands(one) is state), None)
        if found is not None:
            return FinalBackup(state=state, backup=found)
    return FinalBackup(state=_S.PENDING if wanted else _S.OFF)


def _stands(one: BackupSet) -> FinalBackupState:
    """How a set stands: one that failed is a failure also when policy has let it go."""
    if one.failure:
        return _S.EMPTY if one.failure == NO_VOLUMES else _S.FAILED
    return _OF_STATUS[one.status]
