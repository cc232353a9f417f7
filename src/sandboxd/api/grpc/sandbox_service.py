"""SandboxService: decode, call, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

import grpc.aio
from typing_extensions import override

from sandboxd.api.grpc.admission import Drain, StreamSlots
from sandboxd.api.grpc.codec_backup import KINDS, backup_of, encode_final_backup
from sandboxd.api.grpc.codec_image import encode_image
from sandboxd.api.grpc.codec_sandbox import (
    decode_edit,
    decode_order,
    decode_selection,
    decode_wish,
    encode_change,
    encode_sandbox,
)
from sandboxd.api.grpc.codec_startup import encode_startup
from sandboxd.api.grpc.names import sandbox_id
from sandboxd.api.grpc.ports import SandboxManager
from sandboxd.api.grpc.requests import request_of
from sandboxd.api.grpc.rpc import Rpc, closed_at_end, current_rpc, write
from sandboxd.api.grpc.stay import Stay
from sandboxd.api.grpc.stream_call import StreamCalls
from sandboxd.manager.images import Images
from sandboxd.manager.reading import SandboxChange
from sandboxd.model.backup import Volume
from sandboxd.model.sandbox import Sandbox
from sandboxd.v1 import sandbox_pb2 as pb
from sandboxd.v1 import sandbox_pb2_grpc

MAX_WORK: Final = timedelta(minutes=10)
"""Longest wait for one operation, whatever deadline the caller gave."""

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: only Watch and Stream touch the context's own request and response types."""


class SandboxServicer(sandbox_pb2_grpc.SandboxServiceServicer):
    """Serves sandboxes."""

    def __init__(
        self,
        *,
        manager: SandboxManager,
        images: Images,
        streams: StreamCalls,
        slots: StreamSlots,
        drain: Drain,
        stay: Stay,
        backend: str,
    ) -> None:
        self._manager = manager
        self._images = images
        self._streams = streams
        self._slots = slots
        self._drain = drain
        self._stay = stay
        self._backend = backend

    @override
    async def Create(self, request: pb.CreateRequest, context: Context) -> pb.CreateResponse:
        """Make a sandbox."""
        rpc = current_rpc()
        sandbox = await self._manager.create(
            request_of(request, request.request_id), decode_wish(request), timeout=_budget(rpc)
        )
        startup = encode_startup(self._manager.startup(sandbox))
        return pb.CreateResponse(sandbox=await self._shown(sandbox), startup=startup)

    @override
    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        """Return one sandbox."""
        sandbox = await self._manager.get(current_rpc().caller, sandbox_id(request.name))
        return pb.GetResponse(sandbox=await self._shown_whole(sandbox))

    @override
    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        """List the caller's sandboxes."""
        page = await self._manager.list(
            current_rpc().caller,
            decode_selection(request.filter),
            order=decode_order(request.order_by),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListResponse(
            sandboxes=[await self._shown(sandbox) for sandbox in page.items], next_page_token=page.next_token
        )

    @override
    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:  # type: ignore[override]  # writes itself
        """Send the present sandboxes and every change."""
        self._drain.refuse()
        rpc = current_rpc()
        with self._slots.take(rpc.caller.client):
            changes = self._manager.watch(rpc.caller, decode_selection(request.filter))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(changes, context), name="watch-send")
                tasks.create_task(self._drain.end(), name="watch-drain")
                tasks.create_task(self._stay.end(rpc), name="watch-stay")

    @override
    async def Update(self, request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        """Change a sandbox."""
        rpc = current_rpc()
        sandbox = await self._manager.update(
            request_of(request, request.request_id),
            sandbox_id(request.sandbox.name),
            decode_edit(request),
            etag=request.sandbox.etag,
            timeout=_budget(rpc),
        )
        return pb.UpdateResponse(sandbox=await self._shown(sandbox))

    @override
    async def Pause(self, request: pb.PauseRequest, context: Context) -> pb.PauseResponse:
        """Release a sandbox's compute."""
        rpc = current_rpc()
        sandbox = await self._manager.pause(
            request_of(request, request.request_id),
            sandbox_id(request.name),
            force=request.force,
            timeout=_budget(rpc),
        )
        return pb.PauseResponse(sandbox=await self._shown(sandbox))

    @override
    async def Resume(self, request: pb.ResumeRequest, context: Context) -> pb.ResumeResponse:
        """Bring a sandbox back."""
        rpc = current_rpc()
        sandbox = await self._manager.resume(
            request_of(request, request.request_id), sandbox_id(request.name), timeout=_budget(rpc)
        )
        return pb.ResumeResponse(sandbox=await self._shown(sandbox))

    @override
    async def Commit(self, request: pb.CommitRequest, context: Context) -> pb.CommitResponse:
        """Keep what was installed."""
        rpc = current_rpc()
        shown = await self._images.commit(
            request_of(request, request.request_id),
            sandbox_id(request.name),
            dry_run=request.dry_run,
            wait=not request.start_only,
            timeout=_budget(rpc),
        )
        image = encode_image(shown)
        return pb.CommitResponse(digest=image.digest, image=image)

    @override
    async def Terminate(self, request: pb.TerminateRequest, context: Context) -> pb.TerminateResponse:
        """End a sandbox."""
        rpc = current_rpc()
        settled = await self._manager.terminate(
            request_of(request, request.request_id),
            sandbox_id(request.name),
            force=request.force,
            timeout=_budget(rpc),
        )
        return pb.TerminateResponse(sandbox=await self._shown_whole(settled.sandbox), kept=settled.kept)

    @override
    async def Restore(self, request: pb.RestoreRequest, context: Context) -> pb.RestoreResponse:
        """Bring a sandbox back to what a backup has."""
        rpc = current_rpc()
        paths: dict[Volume, list[bytes]] = {}
        for one in request.paths:
            paths.setdefault(KINDS[one.kind], []).append(one.path)
        sandbox = await self._manager.restore(
            request_of(request, request.request_id),
            sandbox_id(request.name),
            backup=backup_of(request.backup),
            paths=paths,
            workspace_only=request.workspace_only,
            timeout=_budget(rpc),
        )
        return pb.RestoreResponse(sandbox=await self._shown(sandbox))

    @override
    async def Stream(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]  # reads and writes itself
        """Serve one conversation."""
        await self._streams.serve(current_rpc(), context)

    async def _send(self, changes: AsyncIterator[SandboxChange], context: Context) -> None:
        async with closed_at_end(changes):
            async for change in changes:
                planned = None if change.sandbox is None else await self._manager.next_step(change.sandbox)
                message = encode_change(change, backend=self._backend, planned=planned)
                await write(context, message, within=self._streams.write_within)

    async def _shown(self, sandbox: Sandbox) -> pb.Sandbox:
        return encode_sandbox(sandbox, backend=self._backend, planned=await self._manager.next_step(sandbox))

    async def _shown_whole(self, sandbox: Sandbox) -> pb.Sandbox:
        """With what it is backed up as, which lists and watches do not look up."""
        shown, final = await self._shown(sandbox), await self._manager.final_backup(sandbox)
        if final is not None:
            shown.final_backup.CopyFrom(encode_final_backup(final))
        return shown


def _budget(rpc: Rpc) -> timedelta:
    return rpc.remaining(at_most=MAX_WORK)
