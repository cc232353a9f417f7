"""The calls of commits and images, as part of the client (`client.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc.aio

from sandboxd.ctl.backoff import RECONNECT
from sandboxd.ctl.connection import WORK_SECONDS, Connection, new_request_id
from sandboxd.ctl.errors import from_rpc_error
from sandboxd.ctl.staying import stay
from sandboxd.v1 import image_pb2, image_pb2_grpc, sandbox_pb2, sandbox_pb2_grpc

PAGE_SIZE = 200
PLAN_SECONDS = 600.0
"""Deadline of a plan: the first one for a base reads it from the registry."""
IN_FLIGHT = frozenset({image_pb2.IMAGE_STATUS_BUILDING, image_pb2.IMAGE_STATUS_PUSHED, image_pb2.IMAGE_STATUS_VERIFIED})
"""While a commit works on it."""


class ImageClient:
    """What root file systems are kept as."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = image_pb2_grpc.ImageServiceStub(connection.channel)
        self._sandboxes = sandbox_pb2_grpc.SandboxServiceStub(connection.channel)

    async def begin(self, sandbox: str, *, dry_run: bool = False, request_id: str = "") -> image_pb2.Image:
        """Begin a commit and return its image as it is then: `follow` says what it comes to."""
        request = sandbox_pb2.CommitRequest(
            request_id=request_id or new_request_id(), name=sandbox, dry_run=dry_run, start_only=True
        )
        return (await self._connection.call(self._sandboxes.Commit, request)).image

    async def follow(self, image: str) -> AsyncIterator[image_pb2.Image]:
        """Yield a commit's image with each change, the last one when it has ended, across restarts of the service."""
        request = image_pb2.WatchCommitRequest(name=image)
        answers = stay(
            lambda: self._stub.WatchCommit(request, metadata=self._connection.metadata()),
            arrived=lambda _: True,
            patience=RECONNECT,
        )
        async with aclosing(answers):
            async for answer in answers:
                yield answer.image
                if answer.image.status not in IN_FLIGHT:
                    return

    async def cancel(self, image: str) -> image_pb2.Image:
        """End a commit, and return its image when it has ended."""
        request = image_pb2.CancelCommitRequest(request_id=new_request_id(), name=image)
        return (await self._connection.call(self._stub.CancelCommit, request, timeout=WORK_SECONDS)).image

    async def list(self, sandbox: str, *, everything: bool = False) -> AsyncIterator[image_pb2.Image]:
        """Yield a sandbox's images, the newest first."""
        request = image_pb2.ListImagesRequest(sandbox=sandbox, everything=everything, page_size=PAGE_SIZE)
        while True:
            page = await self._connection.call(self._stub.ListImages, request)
            for image in page.images:
                yield image
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def rollback(self, image: str) -> image_pb2.Image:
        """Let the sandbox's next start take an older image."""
        request = image_pb2.RollbackImageRequest(request_id=new_request_id(), name=image)
        return (await self._connection.call(self._stub.RollbackImage, request)).image

    async def sbom(self, image: str) -> tuple[image_pb2.ImageSbom, bytes]:
        """Return the list of an image's packages: what it is, and the document.

        Raises:
            ApiError: It was refused, or broke off; also where what came is not what was announced.
        """
        request, sbom, document = image_pb2.GetImageSbomRequest(name=image), image_pb2.ImageSbom(), bytearray()
        call = self._stub.GetImageSbom(request, metadata=self._connection.metadata(), timeout=WORK_SECONDS)
        try:
            async for answer in call:
                if answer.WhichOneof("content") == "sbom":
                    sbom = answer.sbom
                else:
                    document += answer.chunk
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
        return sbom, bytes(document)

    async def begin_upgrade(self, sandbox: str, *, skip: bool, request_id: str = "") -> image_pb2.Image:
        """Begin to make what is installed again on the present base: `follow` says what it comes to."""
        request = image_pb2.UpgradeImageRequest(
            request_id=request_id or new_request_id(),
            sandbox=sandbox,
            policy=image_pb2.REPLAY_POLICY_SKIP if skip else image_pb2.REPLAY_POLICY_FAIL,
            start_only=True,
        )
        return (await self._connection.call(self._stub.UpgradeImage, request)).image

    async def plan_upgrade(self, sandbox: str) -> image_pb2.PlanImageUpgradeResponse:
        """Say what an upgrade of the base would do."""
        request = image_pb2.PlanImageUpgradeRequest(sandbox=sandbox)
        return await self._connection.call(self._stub.PlanImageUpgrade, request, timeout=PLAN_SECONDS)
