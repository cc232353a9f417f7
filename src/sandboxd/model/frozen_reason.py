"""What the state of a sandbox says that stands still for a backup."""

from __future__ import annotations

from typing import Final

from sandboxd.model.backup import BackupSet

FROZEN_FOR: Final = "It stands still for a moment, for backup"
"""Begins the `state_reason` of a sandbox that is frozen for a backup."""


def frozen_for(backup: BackupSet) -> str:
    """The `state_reason` of a sandbox that stands still for a set."""
    return f"{FROZEN_FOR} {backup.id}. A prompt wakes it at once."
