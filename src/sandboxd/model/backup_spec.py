"""What a backup set says of the sandbox that it is of: what that was made from, and whether it had ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sandboxd.model.sandbox import Sandbox, SandboxState

ENDED_INCARNATION: Final = "ended_incarnation"
"""The last life of a sandbox that had ended for good when the set was taken."""


def spec_of(sandbox: Sandbox) -> Mapping[str, str]:
    """Say what a sandbox is made from, as far as a restore to a new one needs it."""
    said = {
        "display_name": sandbox.display_name,
        "tier": sandbox.tier.value,
        "model": sandbox.model,
        "approval_mode": sandbox.approval_mode.value,
        "state": sandbox.state.value,
        **_end_of(sandbox),
    }
    if sandbox.dirty_since is not None:
        said["unsaved_since"] = sandbox.dirty_since.isoformat()
    return said


def _end_of(sandbox: Sandbox) -> Mapping[str, str]:
    """Say that it has ended, and with which life: no clock decides about that."""
    restoring = sandbox.restoring
    from_end = (
        sandbox.state is SandboxState.RESTORING
        and restoring is not None
        and not restoring.restored
        and restoring.came_from == SandboxState.TERMINATED.value
    )
    ended = sandbox.state is SandboxState.TERMINATED or from_end
    return {ENDED_INCARNATION: sandbox.incarnation} if ended and sandbox.incarnation else {}
