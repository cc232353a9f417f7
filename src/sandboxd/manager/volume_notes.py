"""How far work on volumes is, from who does it to who writes it down and looks for the wish that it ends."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.model.backup import BackupSetProgress
from sandboxd.volumes.ports import VolumesProgress


@dataclass(slots=True, kw_only=True)
class VolumeNote:
    """The last word. It never goes back, whoever takes the work up."""

    progress: BackupSetProgress | None = None
    """At the beginning what is on record."""

    def take(self, said: VolumesProgress) -> None:
        """Take what was told."""
        trees = said.trees
        told = BackupSetProgress(
            volume=said.volume,
            files=trees.files,
            total_files=trees.total_files,
            bytes=trees.bytes,
            total_bytes=trees.total_bytes,
        )
        self.progress = told.after(self.progress)
