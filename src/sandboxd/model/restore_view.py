"""A restore as those see it who follow it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sandboxd.model.backup import BackupSetProgress, RestoreId
from sandboxd.model.errors import WrongStateError
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import Sandbox, SandboxState


class RestoreStep(enum.Enum):
    """Where a restore is."""

    PREPARING = "preparing"
    """What the volumes have now is backed up, unless a set has it."""
    VOLUMES = "volumes"
    """They come back."""
    STARTING = "starting"
    ENDED = "ended"
    """The sandbox's state says what it came to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreView:
    """How far one is."""

    id: RestoreId
    step: RestoreStep
    progress: BackupSetProgress | None = None
    """Of what is backed up first, and then of what comes back; None where nothing was told."""


def view_of(sandbox: Sandbox, *, first: BackupSetProgress | None) -> RestoreView | None:
    """Say how far a sandbox's restore is; None where it has none.

    Args:
        sandbox: As it is now.
        first: How far the backup of it is that is being made.
    """
    restoring = sandbox.restoring
    if sandbox.state is not SandboxState.RESTORING or restoring is None:
        return None
    if restoring.restored:
        return RestoreView(id=restoring.id, step=RestoreStep.STARTING, progress=restoring.progress)
    if restoring.progress is not None:
        return RestoreView(id=restoring.id, step=RestoreStep.VOLUMES, progress=restoring.progress)
    return RestoreView(id=restoring.id, step=RestoreStep.PREPARING, progress=first)


class RestoreNotRunningError(WrongStateError):
    """No restore of the sandbox is at work."""

    reason = "RESTORE_NOT_RUNNING"

    def __init__(self, sandbox: SandboxId, *, state: str) -> None:
        super().__init__(f"Sandbox {sandbox} is {state}: no restore of it is at work.", sandbox=sandbox, state=state)
