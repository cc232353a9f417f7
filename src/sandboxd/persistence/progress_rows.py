"""How far work on volumes is, as JSON in the rows of what it is done for. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandboxd.model.backup import BackupSetProgress, Volume


def progress_json(progress: BackupSetProgress) -> dict[str, Any]:  # Any: JSON
    """Write it."""
    return {
        "volume": progress.volume.value,
        "files": progress.files,
        "total_files": progress.total_files,
        "bytes": progress.bytes,
        "total_bytes": progress.total_bytes,
    }


def read_progress(said: Mapping[str, Any]) -> BackupSetProgress:  # Any: JSON
    """Read it."""
    return BackupSetProgress(
        volume=Volume(said["volume"]),
        files=said["files"],
        total_files=said["total_files"],
        bytes=said["bytes"],
        total_bytes=said["total_bytes"],
    )
