"""BackupService: decode, call, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

import grpc.aio
from google.protobuf.message import Message
from typing_extensions import override

from sandboxd.api.grpc.admission import Drain, StreamSlots
from sandboxd.api.grpc.codec_backup import backup_id, backup_of, decode_freeze, encode_backup, encode_restore_view
from sandboxd.api.grpc.codec_backup_policy import encode_backup_policy
from sandboxd.api.grpc.codec_drill import encode_drill
from sandboxd.api.grpc.names import sandbox_id
from sandboxd.api.grpc.requests import request_of
from sandboxd.api.grpc.rpc import closed_at_end, current_rpc, write
from sandboxd.api.grpc.stay import Stay
from sandboxd.manager.backups import Backups
from sandboxd.model.backup_retention import Keeping
from sandboxd.model.ids import RequestId
from sandboxd.model.legible import legible
from sandboxd.v1 import backup_pb2 as pb
from sandboxd.v1 import backup_pb2_grpc

MAX_WAIT: Final = timedelta(minutes=30)
"""Longest wait for a backup or a deletion; the work goes on."""
MAX_CANCEL: Final = timedelta(minutes=2)
"""Longest wait for the end of a backup or a restore that was cancelled; its wish stands in any case."""

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]
"""Any: only the calls that watch touch the context's own request and response types."""


class BackupServicer(backup_pb2_grpc.BackupServiceServicer):
    """Serves backups."""

    def __init__(
        self, *, backups: Backups, slots: StreamSlots, drain: Drain, stay: Stay, write_within: timedelta
    ) -> None:
        self._backups = backups
        self._slots = slots
        self._drain = drain
        self._stay = stay
        self._write_within = write_within

    @override
    async def CreateBackup(self, request: pb.CreateBackupRequest, context: Context) -> pb.CreateBackupResponse:
        """Back a sandbox up."""
        made = await self._backups.create(
            request_of(request, request.request_id),
            sandbox_id(request.sandbox),
            freeze=decode_freeze(request),
            wait=not request.start_only,
            timeout=current_rpc().remaining(at_most=MAX_WAIT),
        )
        return pb.CreateBackupResponse(backup=encode_backup(made))

    @override
    async def GetBackup(self, request: pb.GetBackupRequest, context: Context) -> pb.GetBackupResponse:
        """Return one backup."""
        caller, sandbox = current_rpc().caller, sandbox_id(request.name)
        found = await self._backups.get(caller, sandbox, backup_id(request.name))
        keeping = await self._backups.keeping(caller, sandbox)
        return pb.GetBackupResponse(backup=encode_backup(found, keeping), policy=_policy(keeping))

    @override
    async def ListBackups(self, request: pb.ListBackupsRequest, context: Context) -> pb.ListBackupsResponse:
        """List backups."""
        caller, sandbox = current_rpc().caller, sandbox_id(request.sandbox)
        page = await self._backups.list(
            caller,
            sandbox,
            deleted=request.deleted,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        keeping = await self._backups.keeping(caller, sandbox)
        return pb.ListBackupsResponse(
            backups=[encode_backup(one, keeping) for one in page.items],
            next_page_token=page.next_token,
            policy=_policy(keeping),
        )

    @override
    async def WatchBackup(self, request: pb.WatchBackupRequest, context: Context) -> None:  # type: ignore[override]  # writes itself
        """Follow a backup to its end."""
        rpc = current_rpc()
        changes = self._backups.watch(rpc.caller, sandbox_id(request.name), backup_id(request.name))
        await self._stream(changes, lambda one: pb.WatchBackupResponse(backup=encode_backup(one)), context)

    @override
    async def WatchRestore(self, request: pb.WatchRestoreRequest, context: Context) -> None:  # type: ignore[override]  # writes itself
        """Follow a restore to its end."""
        views = self._backups.restores.watch(current_rpc().caller, sandbox_id(request.sandbox))
        await self._stream(views, encode_restore_view, context)

    @override
    async def CancelRestore(self, request: pb.CancelRestoreRequest, context: Context) -> pb.CancelRestoreResponse:
        """End a restore."""
        ended = await self._backups.restores.cancel(
            request_of(request, request.request_id),
            sandbox_id(request.sandbox),
            timeout=current_rpc().remaining(at_most=MAX_CANCEL),
        )
        return pb.CancelRestoreResponse(state_reason=legible(ended.state_reason, limit=2000))

    @override
    async def CancelBackup(self, request: pb.CancelBackupRequest, context: Context) -> pb.CancelBackupResponse:
        """End a backup."""
        ended = await self._backups.cancel(
            request_of(request, request.request_id),
            sandbox_id(request.name),
            backup_id(request.name),
            timeout=current_rpc().remaining(at_most=MAX_CANCEL),
        )
        return pb.CancelBackupResponse(backup=encode_backup(ended))

    @override
    async def DeleteBackup(self, request: pb.DeleteBackupRequest, context: Context) -> pb.DeleteBackupResponse:
        """Delete a backup."""
        gone = await self._backups.delete(
            request_of(request, request.request_id),
            sandbox_id(request.name),
            backup_id(request.name),
            give_up=request.give_up,
            timeout=current_rpc().remaining(at_most=MAX_WAIT),
        )
        return pb.DeleteBackupResponse(backup=encode_backup(gone))

    @override
    async def RunDrill(self, request: pb.RunDrillRequest, context: Context) -> pb.RunDrillResponse:
        """Try a restore."""
        drill = await self._backups.drills.run(
            RequestId(request.request_id),
            backup_of(request.backup),
            wait=not request.start_only,
            timeout=current_rpc().remaining(at_most=MAX_WAIT),
        )
        return pb.RunDrillResponse(drill=encode_drill(drill))

    @override
    async def ListDrills(self, request: pb.ListDrillsRequest, context: Context) -> pb.ListDrillsResponse:
        """List restores that were tried."""
        page = await self._backups.drills.list(
            current_rpc().caller, page_size=request.page_size, page_token=request.page_token
        )
        return pb.ListDrillsResponse(drills=[encode_drill(one) for one in page.items], next_page_token=page.next_token)

    async def _stream(self, news: AsyncIterator[T], encode: Callable[[T], Message], context: Context) -> None:
        """Send news until they end, the replica drains, or the caller may stay no longer."""
        self._drain.refuse()
        rpc = current_rpc()
        with self._slots.take(rpc.caller.client):
            async with asyncio.TaskGroup() as tasks:
                others = [
                    tasks.create_task(self._drain.end(), name="watch-backup-drain"),
                    tasks.create_task(self._stay.end(rpc), name="watch-backup-stay"),
                ]
                async with closed_at_end(news):
                    async for one in news:
                        await write(context, encode(one), within=self._write_within)
                for other in others:
                    other.cancel()


def _policy(keeping: Keeping | None) -> pb.BackupPolicy | None:
    return None if keeping is None else encode_backup_policy(keeping.policy)
