"""Backups as the platform's contract tells them, from memory; a part of `FakePlatform`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from typing_extensions import override

from sandboxd.v1 import backup_pb2 as pb
from sandboxd.v1 import backup_pb2_grpc


class FakeBackups(backup_pb2_grpc.BackupServiceServicer):
    """Backups that end when a test lets them: at once, unless `backing_up` is cleared."""

    def __init__(self) -> None:
        self.backups: dict[str, pb.Backup] = {}
        self.backing_up = threading.Event()
        self.backing_up.set()
        self.restoring = threading.Event()
        """Restores, and who watches them, wait for it; set from the beginning."""
        self.restoring.set()
        self.cancelled_restores: list[str] = []
        self.fail_backups = ""
        self.drills: list[pb.Drill] = []
        self.fail_drills = ""
        self.backup_policy = pb.BackupPolicy(
            every=Duration(seconds=43_200),
            after_terminate=True,
            retention=pb.BackupRetention(
                keep_last=3, keep_daily=7, keep_weekly=1, immutable_for=Duration(seconds=30 * 86_400)
            ),
        )

    def add_backups_to(self, server: grpc.Server) -> None:
        backup_pb2_grpc.add_BackupServiceServicer_to_server(self, server)

    @override
    def CreateBackup(self, request: pb.CreateBackupRequest, context: Any) -> pb.CreateBackupResponse:
        backup = pb.Backup(
            name=f"{request.sandbox}/backups/bak-{len(self.backups) + 1:026}",
            status=pb.BACKUP_STATUS_CREATING,
            trigger=pb.BACKUP_TRIGGER_REQUEST,
            progress=pb.BackupProgress(kind=pb.BACKUP_VOLUME_KIND_HOME, files=5, total_files=9),
        )
        backup.take_time.GetCurrentTime()
        self.backups[backup.name] = backup
        return pb.CreateBackupResponse(backup=backup)

    @override
    def RunDrill(self, request: pb.RunDrillRequest, context: Any) -> pb.RunDrillResponse:
        volume = pb.DrilledVolume(
            kind=pb.BACKUP_VOLUME_KIND_HOME, entries=1234, bytes=45_600_000, expected="a" * 64, found="a" * 64
        )
        drill = pb.Drill(
            id=f"drl-{len(self.drills) + 1:026}",
            backup=request.backup or next(iter(self.backups)),
            client="acme",
            status=pb.DRILL_STATUS_PASSED,
            volumes=[volume],
            seconds={"restore": 2.0, "boot": 1.0},
        )
        if self.fail_drills:
            drill.status = pb.DRILL_STATUS_FAILED
            drill.volumes[0].found, drill.volumes[0].difference_count = "b" * 64, 1
            drill.volumes[0].differences.append("notes has other content")
            drill.failure.CopyFrom(pb.BackupFailure(reason=self.fail_drills, message="It came back otherwise."))
        drill.create_time.GetCurrentTime()
        self.drills.insert(0, drill)
        return pb.RunDrillResponse(drill=drill)

    @override
    def ListDrills(self, request: pb.ListDrillsRequest, context: Any) -> pb.ListDrillsResponse:
        begin = int(request.page_token or 0)
        more = begin + 2 < len(self.drills)
        return pb.ListDrillsResponse(
            drills=self.drills[begin : begin + 2], next_page_token=str(begin + 2) if more else ""
        )

    @override
    def WatchBackup(self, request: pb.WatchBackupRequest, context: Any) -> Iterator[pb.WatchBackupResponse]:
        backup = self.backups[request.name]
        yield pb.WatchBackupResponse(backup=backup)
        self.backing_up.wait(10)
        if backup.status == pb.BACKUP_STATUS_CREATING:
            self._end_backup(backup)
        yield pb.WatchBackupResponse(backup=backup)

    @override
    def WatchRestore(self, request: pb.WatchRestoreRequest, context: Any) -> Iterator[pb.WatchRestoreResponse]:
        progress = pb.BackupProgress(kind=pb.BACKUP_VOLUME_KIND_HOME, bytes=23_000_000, total_bytes=45_000_000)
        yield pb.WatchRestoreResponse(step=pb.RESTORE_STEP_VOLUMES, progress=progress)
        self.restoring.wait(10)
        yield pb.WatchRestoreResponse(step=pb.RESTORE_STEP_ENDED)

    @override
    def CancelRestore(self, request: pb.CancelRestoreRequest, context: Any) -> pb.CancelRestoreResponse:
        self.cancelled_restores.append(request.sandbox)
        self.restoring.set()
        return pb.CancelRestoreResponse(state_reason="The restore was cancelled. It is PAUSED \x1b[31mas before.")

    @override
    def GetBackup(self, request: pb.GetBackupRequest, context: Any) -> pb.GetBackupResponse:
        return pb.GetBackupResponse(backup=self.backups[request.name], policy=self.backup_policy)

    @override
    def ListBackups(self, request: pb.ListBackupsRequest, context: Any) -> pb.ListBackupsResponse:
        found = [
            one for name, one in sorted(self.backups.items(), reverse=True) if name.startswith(f"{request.sandbox}/")
        ]
        found = [one for one in found if request.deleted or one.status != pb.BACKUP_STATUS_DELETED]
        page = int(request.page_token or 0)
        following = str(page + 1) if page + 1 < len(found) else ""
        return pb.ListBackupsResponse(
            backups=found[page : page + 1], next_page_token=following, policy=self.backup_policy
        )

    @override
    def CancelBackup(self, request: pb.CancelBackupRequest, context: Any) -> pb.CancelBackupResponse:
        backup = self.backups[request.name]
        backup.ClearField("progress")
        backup.status = pb.BACKUP_STATUS_FAILED
        backup.failure.reason, backup.failure.message = "BACKUP_CANCELLED", "It was cancelled."
        self.backing_up.set()
        return pb.CancelBackupResponse(backup=backup)

    @override
    def DeleteBackup(self, request: pb.DeleteBackupRequest, context: Any) -> pb.DeleteBackupResponse:
        backup = self.backups[request.name]
        backup.status = pb.BACKUP_STATUS_DELETED
        backup.deletion.snapshots.append("1" * 64)
        backup.deletion.forget_time.GetCurrentTime()
        return pb.DeleteBackupResponse(backup=backup)

    def _end_backup(self, backup: pb.Backup) -> None:
        backup.ClearField("progress")
        if self.fail_backups:
            backup.status = pb.BACKUP_STATUS_FAILED
            backup.failure.reason, backup.failure.message = self.fail_backups, "There is no \x1b[31mroom."
            return
        backup.status = pb.BACKUP_STATUS_COMPLETE
        backup.consistency = pb.BACKUP_CONSISTENCY_CRASH_CONSISTENT
        backup.checksum = "c" * 64
        backup.holds.extend([pb.BACKUP_HOLD_NEWEST, pb.BACKUP_HOLD_LOCKED])
        backup.lock_time.FromJsonString("2027-01-31T10:00:00Z")
        backup.volumes.add(kind=pb.BACKUP_VOLUME_KIND_HOME, files=1234, bytes=45_600_000, stored_bytes=1_200_000)
        backup.volumes.add(kind=pb.BACKUP_VOLUME_KIND_WORKSPACE, files=2, bytes=7, stored_bytes=7, vanished=1)
