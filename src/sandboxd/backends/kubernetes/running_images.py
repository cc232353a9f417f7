"""Which image a sandbox's pod was made from, and which one its next pod is made from.

What runs is what the operator saw in the pod's own spec: a runtime's `imageID` is the digest of a manifest with one
runtime, of a configuration with another, and of a third image where two have the same layers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from typing_extensions import override

from sandboxd.backends.kubernetes.mirror import Mirror
from sandboxd.backends.kubernetes.objects import SandboxObjects
from sandboxd.backends.kubernetes.placed import Placed
from sandboxd.backends.kubernetes.refusals import translated
from sandboxd.images.ports import ImageReference, RunningImages
from sandboxd.kubeapi.errors import KubeConflictError, KubeError
from sandboxd.model.errors import DeadlineError, UnavailableError
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.image_errors import ImageUnnamedError

ATTEMPTS: Final = 5
"""So often is a write repeated that met a start or a stop."""
PAUSE_SECONDS: Final = 0.1


class KubernetesImages(RunningImages):
    """Images of sandboxes that are `Sandbox` resources."""

    def __init__(self, *, objects: SandboxObjects, mirror: Mirror, template: str, base: Callable[[], str]) -> None:
        """Take the parts.

        Args:
            objects: The requests.
            mirror: What is known of sandboxes.
            template: The name of the template that sandboxes are made from.
            base: What it names as their image now; empty while that is not known.
        """
        self._objects = objects
        self._mirror = mirror
        self._template = template
        self._base = base

    @override
    async def base(self) -> ImageReference:
        name = self._base()
        if not name:
            raise UnavailableError(
                f"The image of template {self._template} is not known: there is no such template, or the cluster has "
                "not told of it yet. Try again.",
                template=self._template,
            )
        try:
            return ImageReference.parse(name)
        except ValueError as error:
            raise ImageUnnamedError(
                f"Template {self._template} names its image {name}, which is a tag and no digest. Name it by digest.",
                image=name,
                template=self._template,
            ) from error

    @override
    async def image(self, sandbox: SandboxId, incarnation: IncarnationId, *, timeout: timedelta) -> ImageReference:
        placed = await self._find(sandbox, "what it runs from is not known", timeout=timeout)
        if placed is None or not placed.alive(incarnation):
            raise UnavailableError(f"Sandbox {sandbox} is not running.", sandbox=sandbox, incarnation=incarnation)
        name = placed.status.image
        if not name:
            raise UnavailableError(
                f"The operator has not said yet which image sandbox {sandbox} runs from. Try again.", sandbox=sandbox
            )
        try:
            return ImageReference.parse(name)
        except ValueError as error:
            raise ImageUnnamedError(
                f"Sandbox {sandbox} runs from {name}, which is a tag and no digest. Name the image of template "
                f"{placed.spec.template} by digest, then stop and start the sandbox.",
                sandbox=sandbox,
                image=name,
                template=placed.spec.template,
            ) from error

    @override
    async def set_image(self, sandbox: SandboxId, image: ImageReference | None, *, timeout: timedelta) -> None:
        wanted = "" if image is None else str(image)
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                await self._write(sandbox, wanted)
        except KubeError as error:
            raise translated(error, f"The next image of sandbox {sandbox} cannot be set", sandbox=sandbox) from error
        except TimeoutError as error:
            raise DeadlineError(
                f"The next image of sandbox {sandbox} was not set in the time that was given.", sandbox=sandbox
            ) from error

    async def _write(self, sandbox: SandboxId, wanted: str) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            placed = await self._read(sandbox)
            if placed is None or placed.leaving or placed.spec.image == wanted:
                return
            try:
                # Provided that nobody sets another image meanwhile; whoever starts it meanwhile is waited for.
                await self._objects.change(placed, {"image": wanted}, unless_changed=("image",))
            except KubeConflictError:
                if attempt == ATTEMPTS:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return

    async def _find(self, sandbox: SandboxId, what: str, *, timeout: timedelta) -> Placed | None:
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                return await self._read(sandbox)
        except KubeError as error:
            raise translated(error, f"Sandbox {sandbox}: {what}", sandbox=sandbox) from error
        except TimeoutError as error:
            raise DeadlineError(f"Sandbox {sandbox}: {what} in the time that was given.", sandbox=sandbox) from error

    async def _read(self, sandbox: SandboxId) -> Placed | None:
        """The resource as the API server has it now."""
        known = self._mirror.get(sandbox)
        found = None if known is None else await self._objects.get(known.namespace, sandbox)
        return found or await self._objects.search(sandbox)
