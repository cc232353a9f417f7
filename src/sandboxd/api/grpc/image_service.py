"""ImageService: decode, call, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

import grpc.aio
from typing_extensions import override

from sandboxd.api.grpc.admission import Drain, StreamSlots
from sandboxd.api.grpc.codec_image import encode_image, encode_plan, encode_sbom, image_number
from sandboxd.api.grpc.names import sandbox_id
from sandboxd.api.grpc.requests import request_of
from sandboxd.api.grpc.rpc import closed_at_end, current_rpc, write
from sandboxd.api.grpc.stay import Stay
from sandboxd.manager.image_views import ShownImage
from sandboxd.manager.images import Images
from sandboxd.model.replay import ReplayPolicy
from sandboxd.v1 import image_pb2 as pb
from sandboxd.v1 import image_pb2_grpc

MAX_CANCEL: Final = timedelta(minutes=1)
"""Longest wait for the end of a commit that was cancelled; its wish stands in any case."""

MAX_UPGRADE: Final = timedelta(hours=1)
"""Longest wait for an upgrade's end; it goes on in any case."""
MAX_PLAN: Final = timedelta(minutes=10)
"""Longest wait for what a registry has to tell of base images."""

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: only WatchCommit touches the context's own request and response types."""


class ImageServicer(image_pb2_grpc.ImageServiceServicer):
    """Serves images."""

    def __init__(
        self, *, images: Images, slots: StreamSlots, drain: Drain, stay: Stay, write_within: timedelta
    ) -> None:
        self._images = images
        self._slots = slots
        self._drain = drain
        self._stay = stay
        self._write_within = write_within

    @override
    async def ListImages(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        """List images."""
        page = await self._images.list(
            current_rpc().caller,
            sandbox_id(request.sandbox),
            everything=request.everything,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListImagesResponse(
            images=[encode_image(shown) for shown in page.items], next_page_token=page.next_token
        )

    @override
    async def GetImage(self, request: pb.GetImageRequest, context: Context) -> pb.GetImageResponse:
        """Return one image."""
        shown = await self._images.get(current_rpc().caller, sandbox_id(request.name), image_number(request.name))
        return pb.GetImageResponse(image=encode_image(shown))

    @override
    async def WatchCommit(self, request: pb.WatchCommitRequest, context: Context) -> None:  # type: ignore[override]  # writes itself
        """Follow a commit to its end."""
        self._drain.refuse()
        rpc = current_rpc()
        with self._slots.take(rpc.caller.client):
            changes = self._images.watch(rpc.caller, sandbox_id(request.name), image_number(request.name))
            async with asyncio.TaskGroup() as tasks:
                others = [
                    tasks.create_task(self._drain.end(), name="watch-commit-drain"),
                    tasks.create_task(self._stay.end(rpc), name="watch-commit-stay"),
                ]
                await self._send(changes, context)
                for other in others:
                    other.cancel()

    @override
    async def CancelCommit(self, request: pb.CancelCommitRequest, context: Context) -> pb.CancelCommitResponse:
        """End a commit."""
        shown = await self._images.cancel(
            request_of(request, request.request_id),
            sandbox_id(request.name),
            image_number(request.name),
            timeout=current_rpc().remaining(at_most=MAX_CANCEL),
        )
        return pb.CancelCommitResponse(image=encode_image(shown))

    @override
    async def RollbackImage(self, request: pb.RollbackImageRequest, context: Context) -> pb.RollbackImageResponse:
        """Go back to an older image."""
        shown = await self._images.rollback(
            request_of(request, request.request_id), sandbox_id(request.name), image_number(request.name)
        )
        return pb.RollbackImageResponse(image=encode_image(shown))

    @override
    async def GetImageSbom(self, request: pb.GetImageSbomRequest, context: Context) -> None:  # type: ignore[override]  # writes itself
        """Send the list of an image's packages."""
        self._drain.refuse()
        rpc = current_rpc()
        with self._slots.take(rpc.caller.client):
            sbom, content = await self._images.sbom(rpc.caller, sandbox_id(request.name), image_number(request.name))
            async with closed_at_end(content):
                head = pb.GetImageSbomResponse(sbom=encode_sbom(sbom))
                await write(context, head, within=self._write_within)
                async for piece in content:
                    await write(context, pb.GetImageSbomResponse(chunk=piece), within=self._write_within)

    @override
    async def UpgradeImage(self, request: pb.UpgradeImageRequest, context: Context) -> pb.UpgradeImageResponse:
        """Make what is installed again on the present base."""
        skip = request.policy == pb.REPLAY_POLICY_SKIP
        shown = await self._images.upgrade(
            request_of(request, request.request_id),
            sandbox_id(request.sandbox),
            ReplayPolicy.SKIP if skip else ReplayPolicy.FAIL,
            wait=not request.start_only,
            timeout=current_rpc().remaining(at_most=MAX_UPGRADE),
        )
        return pb.UpgradeImageResponse(image=encode_image(shown))

    @override
    async def PlanImageUpgrade(
        self, request: pb.PlanImageUpgradeRequest, context: Context
    ) -> pb.PlanImageUpgradeResponse:
        """Say what an upgrade of the base would do."""
        rpc = current_rpc()
        plan = await self._images.plan_upgrade(
            rpc.caller, sandbox_id(request.sandbox), timeout=rpc.remaining(at_most=MAX_PLAN)
        )
        return encode_plan(plan)

    async def _send(self, changes: AsyncIterator[ShownImage], context: Context) -> None:
        async with closed_at_end(changes):
            async for shown in changes:
                await write(context, pb.WatchCommitResponse(image=encode_image(shown)), within=self._write_within)
