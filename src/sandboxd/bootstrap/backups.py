"""What backups need of the outside, made from settings."""

from __future__ import annotations

from datetime import timedelta

from sandboxd.backends.local.backups import LocalVolumeBackups
from sandboxd.backends.restic.child import ResticSettings
from sandboxd.backends.restic.clients import ResticRepositories
from sandboxd.bootstrap.places import Placement
from sandboxd.manager.backup_tools import BackupTools
from sandboxd.model.backup import BackupMethod
from sandboxd.settings import Settings
from sandboxd.volumes.ports import VolumeBackups


def backup_tools(settings: Settings, placement: Placement) -> BackupTools | None:
    """Make what sandboxes are backed up with; None where the settings name no place, or this backend knows none."""
    kept = dict(placement.backups)
    if (local := _local_backups(settings)) is not None:
        kept[BackupMethod.FILES] = local
    method = BackupMethod(settings.backups_method)
    if method not in kept:
        return None
    volumes = kept.pop(method)
    longest = timedelta(seconds=settings.backups_seconds)
    return BackupTools(
        volumes=volumes,
        method=method,
        others=kept,
        retention=settings.backup_retention,
        take_timeout=longest,
        restore_timeout=longest,
        delete_timeout=longest,
        every=timedelta(seconds=settings.backups_every_seconds),
        after_terminate=settings.backups_after_terminate,
        kept=placement.kept,
        release_after=timedelta(seconds=settings.backups_release_seconds),
        at_once=settings.backups_at_once,
        drill_every=timedelta(seconds=settings.backups_drill_every_seconds),
        drill_bytes=settings.backups_drill_bytes,
        pause=timedelta(seconds=settings.backups_look_seconds),
    )


def _local_backups(settings: Settings) -> VolumeBackups | None:
    if settings.backend != "local" or not settings.backups_location:
        return None
    passwords = settings.backups_passwords_dir or settings.home / "keys" / "backups"
    shared = ResticSettings(
        location=settings.backups_location,
        password_file=passwords / "none",
        work=settings.home / "backups-work",
        program=settings.backups_restic,
        s3_credentials_file=settings.backups_s3_credentials_file,
        upload_kibibytes=settings.backups_upload_kibibytes,
        download_kibibytes=settings.backups_download_kibibytes,
    )
    return LocalVolumeBackups(data=settings.home, repositories=ResticRepositories(settings=shared, passwords=passwords))
