"""Commits and images as the platform's contract tells them, from memory; a part of `FakePlatform`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
from typing_extensions import override

from sandboxd.v1 import image_pb2 as pb
from sandboxd.v1 import image_pb2_grpc, package_pb2, sandbox_pb2


class FakeImages(image_pb2_grpc.ImageServiceServicer):
    """Commits that end when a test lets them: at once, unless `committing` is cleared."""

    def __init__(self) -> None:
        self.images: dict[str, pb.Image] = {}
        self.committing = threading.Event()
        """While it is not set, commits go on."""
        self.committing.set()
        self.fail_commits = ""
        """The reason that every commit fails with."""
        self.why = "It failed: usr/share."

    def add_images_to(self, server: grpc.Server) -> None:
        image_pb2_grpc.add_ImageServiceServicer_to_server(self, server)

    def begin_commit(self, request: sandbox_pb2.CommitRequest) -> sandbox_pb2.CommitResponse:
        number = 1 + sum(name.startswith(f"{request.name}/") for name in self.images)
        image = pb.Image(
            name=f"{request.name}/images/g{number:06}",
            status=pb.IMAGE_STATUS_BUILDING,
            trigger=pb.COMMIT_TRIGGER_REQUEST,
            dry_run=request.dry_run,
            progress=pb.CommitProgress(phase=pb.COMMIT_PHASE_CAPTURE, entries=12345, bytes=6_000_000),
        )
        image.create_time.GetCurrentTime()
        self.images[image.name] = image
        return sandbox_pb2.CommitResponse(image=image)

    @override
    def WatchCommit(self, request: pb.WatchCommitRequest, context: Any) -> Iterator[pb.WatchCommitResponse]:
        image = self.images[request.name]
        yield pb.WatchCommitResponse(image=image)
        self.committing.wait(10)
        if image.status == pb.IMAGE_STATUS_BUILDING:
            self._end(image)
        yield pb.WatchCommitResponse(image=image)

    @override
    def CancelCommit(self, request: pb.CancelCommitRequest, context: Any) -> pb.CancelCommitResponse:
        image = self.images[request.name]
        image.ClearField("progress")
        image.status = pb.IMAGE_STATUS_FAILED
        image.failure.reason = "COMMIT_CANCELLED"
        image.failure.message = "It was cancelled."
        self.committing.set()
        return pb.CancelCommitResponse(image=image)

    @override
    def GetImage(self, request: pb.GetImageRequest, context: Any) -> pb.GetImageResponse:
        return pb.GetImageResponse(image=self.images[request.name])

    @override
    def ListImages(self, request: pb.ListImagesRequest, context: Any) -> pb.ListImagesResponse:
        found = [
            one for name, one in sorted(self.images.items(), reverse=True) if name.startswith(f"{request.sandbox}/")
        ]
        if not request.everything:
            found = [one for one in found if one.status != pb.IMAGE_STATUS_FAILED]
        page = int(request.page_token or 0)
        following = str(page + 1) if page + 1 < len(found) else ""
        return pb.ListImagesResponse(images=found[page : page + 1], next_page_token=following)

    @override
    def GetImageSbom(self, request: pb.GetImageSbomRequest, context: Any) -> Iterator[pb.GetImageSbomResponse]:
        if request.name not in self.images:
            context.abort(grpc.StatusCode.NOT_FOUND, "There is none.")
        yield pb.GetImageSbomResponse(sbom=pb.ImageSbom(digest="sha256:" + "d" * 64, packages=1, complete=True))
        for piece in (b'{"components":[{"name":', b'"ripgrep"}]}'):
            yield pb.GetImageSbomResponse(chunk=piece)

    @override
    def RollbackImage(self, request: pb.RollbackImageRequest, context: Any) -> pb.RollbackImageResponse:
        if request.name not in self.images:
            context.abort(grpc.StatusCode.NOT_FOUND, "There is none.")
        for image in self.images.values():
            image.status = pb.IMAGE_STATUS_SUPERSEDED
        self.images[request.name].status = pb.IMAGE_STATUS_ACTIVE
        return pb.RollbackImageResponse(image=self.images[request.name])

    @override
    def UpgradeImage(self, request: pb.UpgradeImageRequest, context: Any) -> pb.UpgradeImageResponse:
        number = 1 + sum(name.startswith(f"{request.sandbox}/") for name in self.images)
        image = pb.Image(
            name=f"{request.sandbox}/images/g{number:06}",
            status=pb.IMAGE_STATUS_BUILDING,
            trigger=pb.COMMIT_TRIGGER_UPGRADE,
            progress=pb.CommitProgress(phase=pb.COMMIT_PHASE_REPLAY, entries=2),
        )
        if request.policy == pb.REPLAY_POLICY_SKIP:
            image.left_out.add(reason="package_failed", count=1, paths=["dpkg ripgrep 14.1-1"])
        image.create_time.GetCurrentTime()
        self.images[image.name] = image
        return pb.UpgradeImageResponse(image=image)

    @override
    def PlanImageUpgrade(self, request: pb.PlanImageUpgradeRequest, context: Any) -> pb.PlanImageUpgradeResponse:
        plan = pb.PlanImageUpgradeResponse(new_base=f"registry.test/base@sha256:{'c' * 64}")
        if self.images:
            plan.needed, plan.image = True, max(self.images)
            plan.old_base = f"registry.test/base@sha256:{'b' * 64}"
            plan.packages.add(
                manager=package_pb2.PACKAGE_MANAGER_DPKG,
                name="ripgrep",
                version="14.1-1",
                action=pb.REPLAY_ACTION_INSTALL,
            )
            plan.left_out.add(reason="by_hand", count=12, paths=["usr/local/bin/tool", "opt/\x1b[31m"])
        return plan

    def _end(self, image: pb.Image) -> None:
        image.ClearField("progress")
        if self.fail_commits:
            image.status = pb.IMAGE_STATUS_FAILED
            image.failure.reason, image.failure.message = self.fail_commits, self.why
            return
        for other in self.images.values():
            if other.status == pb.IMAGE_STATUS_ACTIVE:
                other.status = pb.IMAGE_STATUS_SUPERSEDED
        image.status = pb.IMAGE_STATUS_DISCARDED if image.dry_run else pb.IMAGE_STATUS_ACTIVE
        image.digest = "" if image.dry_run else "sha256:" + "a" * 64
        image.reference = "" if image.dry_run else f"registry.test/acme/gemini-cli-user-ada@{image.digest}"
        image.raw_bytes, image.compressed_bytes, image.image_bytes = 123_400_000, 45_600_000, 300_000_000
        image.layers, image.entries = 3, 1234
        phase = image.phases.add(phase=pb.COMMIT_PHASE_CAPTURE)
        phase.duration.FromMilliseconds(1500)
        image.left_out.add(reason="secret", count=2, paths=["root/.netrc", "root/\x1b[31m"])
        image.warnings.append("2 path(s) left out because they hold keys or tokens, or usually do.")
