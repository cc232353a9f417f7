"""The calls of backups, as part of the client (`client.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta

from sandboxd.ctl.backoff import RECONNECT
from sandboxd.ctl.connection import WORK_SECONDS, Connection, new_request_id
from sandboxd.ctl.staying import stay
from sandboxd.v1 import backup_pb2, backup_pb2_grpc

PAGE_SIZE = 200


class BackupClient:
    """What sandboxes are rebuilt from."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = backup_pb2_grpc.BackupServiceStub(connection.channel)

    async def begin(
        self,
        sandbox: str,
        *,
        request_id: str = "",
        freeze: backup_pb2.BackupFreeze.ValueType = backup_pb2.BACKUP_FREEZE_UNSPECIFIED,
        freeze_at_most: timedelta | None = None,
    ) -> backup_pb2.Backup:
        """Begin a backup and return it as it is then: `follow` says what it comes to."""
        request = backup_pb2.CreateBackupRequest(
            request_id=request_id or new_request_id(), sandbox=sandbox, start_only=True, freeze=freeze
        )
        if freeze_at_most is not None:
            request.freeze_at_most.FromTimedelta(freeze_at_most)
        return (await self._connection.call(self._stub.CreateBackup, request)).backup

    async def follow(self, backup: str) -> AsyncIterator[backup_pb2.Backup]:
        """Yield a backup with each change, the last one when it has ended, across restarts of the service."""
        request = backup_pb2.WatchBackupRequest(name=backup)
        answers = stay(
            lambda: self._stub.WatchBackup(request, metadata=self._connection.metadata()),
            arrived=lambda _: True,
            patience=RECONNECT,
        )
        async with aclosing(answers):
            async for answer in answers:
                yield answer.backup
                if answer.backup.status != backup_pb2.BACKUP_STATUS_CREATING:
                    return

    async def follow_restore(self, sandbox: str) -> AsyncIterator[backup_pb2.WatchRestoreResponse]:
        """Yield how far the restore of a sandbox is, until it has ended, across restarts of the service."""
        request = backup_pb2.WatchRestoreRequest(sandbox=sandbox)
        answers = stay(
            lambda: self._stub.WatchRestore(request, metadata=self._connection.metadata()),
            arrived=lambda _: True,
            patience=RECONNECT,
        )
        async with aclosing(answers):
            async for answer in answers:
                yield answer
                if answer.step == backup_pb2.RESTORE_STEP_ENDED:
                    return

    async def cancel_restore(self, sandbox: str) -> str:
        """End the restore of a sandbox, and return what its state says when it is as it was before."""
        request = backup_pb2.CancelRestoreRequest(request_id=new_request_id(), sandbox=sandbox)
        return (await self._connection.call(self._stub.CancelRestore, request, timeout=WORK_SECONDS)).state_reason

    async def cancel(self, backup: str) -> backup_pb2.Backup:
        """End a backup, and return it when it has ended."""
        request = backup_pb2.CancelBackupRequest(request_id=new_request_id(), name=backup)
        return (await self._connection.call(self._stub.CancelBackup, request, timeout=WORK_SECONDS)).backup

    async def get(self, backup: str) -> backup_pb2.Backup:
        """Return one backup by its resource name."""
        return (await self.look(backup)).backup

    async def look(self, backup: str) -> backup_pb2.GetBackupResponse:
        """Return one backup by its resource name, with what it is kept by."""
        return await self._connection.call(self._stub.GetBackup, backup_pb2.GetBackupRequest(name=backup))

    async def policy(self, sandbox: str) -> backup_pb2.BackupPolicy | None:
        """Return by what a sandbox's backups are made and kept; None where the installation keeps none."""
        request = backup_pb2.ListBackupsRequest(sandbox=sandbox, page_size=1)
        answer = await self._connection.call(self._stub.ListBackups, request)
        return answer.policy if answer.HasField("policy") else None

    async def list(self, sandbox: str, *, deleted: bool = False) -> AsyncIterator[backup_pb2.Backup]:
        """Yield a sandbox's backups, the newest first."""
        request = backup_pb2.ListBackupsRequest(sandbox=sandbox, deleted=deleted, page_size=PAGE_SIZE)
        while True:
            page = await self._connection.call(self._stub.ListBackups, request)
            for backup in page.backups:
                yield backup
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete(self, backup: str, *, give_up: bool = False, timeout: float = WORK_SECONDS) -> backup_pb2.Backup:
        """Delete a backup, and return it when the repository has none of it; `give_up`: also the only one."""
        request = backup_pb2.DeleteBackupRequest(request_id=new_request_id(), name=backup, give_up=give_up)
        return (await self._connection.call(self._stub.DeleteBackup, request, timeout=timeout)).backup

    async def drill(self, backup: str = "", *, timeout: float = WORK_SECONDS) -> backup_pb2.Drill:
        """Try the restore of a backup, or of the one whose turn it is, and return what that came to."""
        request = backup_pb2.RunDrillRequest(request_id=new_request_id(), backup=backup)
        return (await self._connection.call(self._stub.RunDrill, request, timeout=timeout)).drill

    async def drills(self) -> AsyncIterator[backup_pb2.Drill]:
        """Yield restores that were tried, the newest first."""
        request = backup_pb2.ListDrillsRequest(page_size=PAGE_SIZE)
        while True:
            page = await self._connection.call(self._stub.ListDrills, request)
            for drill in page.drills:
                yield drill
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
