"""Settings of backups: where repositories lie, what opens them, and what a policy keeps."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from sandboxd.model.backup_retention import BackupRetention


class BackupSettings(BaseSettings):
    """How sandboxes are backed up. A part of `Settings`."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    backups_method: Literal["files", "snapshots"] = "files"
    """How home and workspace are backed up: as `files`, encrypted and elsewhere, or in a cluster by CSI `snapshots` of
    their volumes' own storage. Each backup knows how it was made: those of the other method can still be restored and
    deleted, where its settings are there."""
    backups_location: str = Field(default="", max_length=1024, pattern=r"^(/.*|s3:https?://[^\s/]+/\S+)?$")
    """Where clients' repositories of backups lie, one below it for each: an absolute directory, or
    `s3:https://host/bucket/prefix`. If empty nothing is backed up as files, and CreateBackup says so."""
    backups_passwords_dir: Path | None = None
    """Where the password of each repository is kept, with the local backend; `keys/backups` in the data directory if
    empty. Without it nobody reads the backups: keep a copy where they are not."""
    backups_s3_credentials_file: Path | None = None
    """The storage's keys, in the form of `~/.aws/credentials`, profile `default`."""
    backups_restic: str = Field(default="restic", min_length=1, max_length=1024)
    """restic, 0.17 or newer: a name on `PATH` or a path."""
    backups_upload_kibibytes: int = Field(default=0, ge=0, le=1 << 30)
    """KiB a second that each backup sends at most; 0 is no bound."""
    backups_download_kibibytes: int = Field(default=0, ge=0, le=1 << 30)
    """KiB a second that each restore reads at most; 0 is no bound."""
    backups_seconds: float = Field(default=21_600, gt=0, le=604_800)
    """Longest time of a backup, of a restore and of a deletion."""
    backups_every_seconds: float = Field(default=86_400, ge=0, le=31_536_000)
    """How old the newest backup of a sandbox that is used may become; 0 backs nothing up by schedule."""
    backups_after_terminate: bool = True
    """Back up what terminated sandboxes leave."""
    backups_release_seconds: float = Field(default=604_800, ge=0, le=315_360_000)
    """How long after its end a sandbox's volumes are released, where a backup of that end was read from the repository
    right before; 0 keeps them for good."""
    backups_at_once: int = Field(default=2, ge=1, le=100)
    """Backups that policy lets a replica make at the same time; those that somebody asks for come beside them."""
    backups_look_seconds: float = Field(default=60, ge=0, le=86_400)
    """How often one replica looks what is to be backed up and which backups are kept no more; 0 is never."""
    backups_keep_last: int = Field(default=3, ge=0, le=10_000)
    """Of each sandbox so many newest backups are kept; the newest complete one always."""
    backups_keep_daily: int = Field(default=7, ge=0, le=10_000)
    """And the newest of each of so many days (UTC) that have any."""
    backups_keep_weekly: int = Field(default=4, ge=0, le=10_000)
    """And the newest of each of so many weeks (UTC) that have any."""
    backups_released_seconds: float = Field(default=0, ge=0, le=3_153_600_000)
    """How long a sandbox whose volumes were released can be restored: then its last backups go, too. 0 is without
    end."""
    backups_immutable_seconds: float = Field(default=0, ge=0, le=315_360_000)
    """So long after its completion nothing deletes a backup, whoever asks, except the erasure of its client."""

    backups_drill_every_seconds: float = Field(default=86_400, ge=0, le=31_536_000)
    """How often one backup is restored into a sandbox that is nobody's, booted, compared byte for byte and destroyed,
    each client's in turn; 0 leaves that to RunDrill."""
    backups_drill_bytes: int = Field(default=10 << 30, ge=1, le=1 << 50)
    """Backups with more bytes of files have no turn in that; RunDrill takes any that is named."""

    @property
    def backup_retention(self) -> BackupRetention:
        """What is kept of one sandbox."""
        return BackupRetention(
            keep_last=self.backups_keep_last,
            keep_daily=self.backups_keep_daily,
            keep_weekly=self.backups_keep_weekly,
            released_for=timedelta(seconds=self.backups_released_seconds),
            immutable_for=timedelta(seconds=self.backups_immutable_seconds),
        )
