"""What commits need of the world, in memory: root file systems are one line of text each."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta

from typing_extensions import override

from sandboxd.images.ports import (
    BuildOrder,
    BuildProgress,
    BuiltImage,
    ImageBuilder,
    ImageProbe,
    ImageReference,
    LeftOut,
    RunningImages,
)
from sandboxd.images.registry import OCI_MANIFEST, Manifest, digest_of
from sandboxd.model.errors import SandboxdError, UnavailableError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.image import tag_of
from sandboxd.model.image_errors import CaptureRunningError, ImageBrokenError
from sandboxd.model.image_names import user_repository
from tests.fakes.baselines import FakeBaselines
from tests.fakes.manager import FakeBackend
from tests.fakes.registry import FakeRegistry

REGISTRY = "registry.test:5000"
BASE = ImageReference(registry=REGISTRY, repository="sandboxd/sandbox", digest="sha256:" + "b" * 64)


def an_image(digit: str = "a", *, client: str = "acme", freelancer: str = "ada") -> ImageReference:
    """An image of a freelancer; another digit is another one."""
    repository = user_repository(ClientId(client), FreelancerId(freelancer))
    return ImageReference(registry=REGISTRY, repository=repository, digest=f"sha256:{digit * 64}")


class FakeImageBuilder(ImageBuilder):
    """Pushes what a test says is in a sandbox's root file system."""

    def __init__(self, registry: FakeRegistry, baselines: FakeBaselines | None = None) -> None:
        self.registry = registry
        self.baselines = baselines or FakeBaselines()
        """Told what the layers have that are pushed."""
        self.files: dict[SandboxId, dict[bytes, bytes]] = {}
        """What a sandbox's own files are, where a test says so."""
        self.roots: defaultdict[SandboxId, str] = defaultdict(lambda: "as the base")
        self.orders: list[BuildOrder] = []
        self.error: SandboxdError | None = None
        self.busy = 0
        """So many captures find that the agent still reads for another one."""
        self.hanging: asyncio.Event | None = None
        """While set, builds wait for it."""
        self.cancelled = 0
        """Builds that were cancelled."""
        self.looked: Callable[[], None] = lambda: None
        """Called when a capture begins."""
        self.largest: list[tuple[str, int]] = []
        """What the largest paths are said to be, where a test says so."""
        self.progress = (BuildProgress(phase="capture", entries=10, bytes=20),)

    @override
    async def build(
        self, order: BuildOrder, *, timeout: timedelta, progress: Callable[[BuildProgress], None]
    ) -> BuiltImage:
        self.orders.append(order)
        self.looked()
        if self.busy:
            self.busy -= 1
            raise CaptureRunningError("Another capture runs.")
        for said in self.progress:
            progress(said)
        await asyncio.sleep(0)
        if self.hanging is not None:
            try:
                await self.hanging.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.error is not None:
            raise self.error
        return await self._pushed(order, self.roots[order.sandbox])

    async def _pushed(self, order: BuildOrder, root: str) -> BuiltImage:
        content = json.dumps({"base": order.base.digest, "root": root}).encode()
        digest = digest_of(content)
        previous = order.previous.digest if order.previous is not None else order.base.digest
        unchanged = digest == previous or (order.previous is None and root == "as the base")
        image = ImageReference(registry=REGISTRY, repository=order.repository, digest=digest)
        if not unchanged and not order.dry_run:
            self.baselines.layers[digest] = dict(self.files.get(order.sandbox, {}))
            manifest = Manifest(media_type=OCI_MANIFEST, content=content)
            for name in (digest, tag_of(order.generation)):
                await self.registry.push(order.repository, name, manifest, timeout=timedelta(seconds=1))
        layer = hashlib.sha256(root.encode()).hexdigest()
        return BuiltImage(
            image=None if order.dry_run else order.previous if unchanged else image,
            unchanged=unchanged,
            layer_digest=f"sha256:{layer}",
            diff_id=f"sha256:{layer}",
            raw_bytes=len(root),
            compressed_bytes=len(root) // 2,
            image_bytes=1000 + len(root),
            layers=2,
            entries=1,
            largest=self.largest or [("usr/bin/root", len(root))],
            left_out=[LeftOut(reason="secret", count=1, paths=["root/.netrc"])],
            seconds={"capture": 1.0, "push": 0.5, "verify": 0.25},
        )


class FakeImageProbe(ImageProbe):
    """Boots everything but what a test has broken."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        """Digests."""
        self.error: SandboxdError | None = None
        self.hanging: asyncio.Event | None = None
        self.probed: list[ImageReference] = []

    @override
    async def probe(self, sandbox: SandboxId, image: ImageReference, *, timeout: timedelta) -> None:
        await asyncio.sleep(0)
        self.probed.append(image)
        if self.hanging is not None:
            await self.hanging.wait()
        if self.error is not None:
            raise self.error
        if image.digest in self.broken:
            raise ImageBrokenError(f"{image.digest} does not boot: /bin/sh is not there.", image=image.digest)


class FakeRunningImages(RunningImages):
    """Which image the sandboxes of a `FakeBackend` run from."""

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.error: SandboxdError | None = None
        self.present = BASE
        """What the template names."""
        self.started: ImageReference | None = None
        """What lives run from that named no image, where that is not what the template names now."""
        self.hanging: asyncio.Event | None = None
        """What a `set_image` waits for."""

    @override
    async def base(self) -> ImageReference:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.present

    @override
    async def image(self, sandbox: SandboxId, incarnation: IncarnationId, *, timeout: timedelta) -> ImageReference:
        await asyncio.sleep(0)
        if incarnation not in self.backend.running.get(sandbox, {}):
            raise UnavailableError(f"Sandbox {sandbox} does not run.")
        running = self.backend.images.get(incarnation, "")
        return ImageReference.parse(running) if running else self.started or self.present

    @override
    async def set_image(self, sandbox: SandboxId, image: ImageReference | None, *, timeout: timedelta) -> None:
        await asyncio.sleep(0)
        if self.hanging is not None:
            await self.hanging.wait()
        if self.error is not None:
            raise self.error
        self.backend.next_images[sandbox] = "" if image is None else str(image)
