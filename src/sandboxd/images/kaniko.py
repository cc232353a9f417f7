"""`ImageBuilder` by kaniko: the same difference, applied to the base in a build of its own, which pushes the image.

Capture, rules and limits are those of `images/building.py`, and what goes into the build is the layer that is written
there. The image is made elsewhere, so its answers are looked at again: base, configuration, labels, blobs and paths.
docs/images-kept.md says what such an image loses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from typing_extensions import override

from sandboxd.images.assembling import LAYER_DIFF_ID, Assembled, user_layers
from sandboxd.images.building import BaseImage, BuildClock, BuildRules, KeptImage, Progress, RegistryImageBuilder
from sandboxd.images.handover import APPLYING, LAYER, Handover, pack
from sandboxd.images.layer_reading import LayerStream, entries_in
from sandboxd.images.manifests import read_config, read_manifest
from sandboxd.images.ports import (
    Baselines,
    BuildOrder,
    BuildProgress,
    ImageReference,
    LayerWriter,
    RootfsCapture,
    WrittenLayer,
)
from sandboxd.images.registry import Registry
from sandboxd.images.spool import Spool
from sandboxd.images.tar_entries import WHITEOUT
from sandboxd.model.errors import SandboxdError, UnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.model.image import tag_of
from sandboxd.model.image_errors import ImageInvalidError, RegistryKeepsError

OWN: Final = b"kaniko"
"""The one directory that kaniko never takes into an image, as it lies there itself."""
CONTEXT: Final = "/kaniko/difference"
"""Where the build has the hand-over."""
_USER: Final = re.compile(r"[A-Za-z0-9_.:-]*")
_REMOVAL: Final = timedelta(seconds=10)
_TAR_BYTES: Final = 1 << 50
"""The layer is our own, and its limits were kept when it was written."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KanikoOrder:
    """One build."""

    sandbox: SandboxId
    generation: int
    base: ImageReference
    """Of the nodes' architecture, never an index."""
    handover: ImageReference
    """Its layer has the context of the build with a `Dockerfile` at the top, which `CONTEXT` is to be."""
    repository: str
    tag: str
    labels: Mapping[str, str]
    raw_bytes: int
    """Of the difference as a tar."""


class KanikoBuilds(Protocol):
    """Runs builds by kaniko somewhere."""

    async def run(self, order: KanikoOrder, *, timeout: timedelta) -> str:
        """Build and push under the tag; return the manifest's digest. Nothing of the build runs on afterwards.

        A build of the same sandbox and generation that somebody has left is ended first.

        Raises:
            UnavailableError: It cannot run now, or it failed; the message has its last words.
            DeadlineError: `timeout` is over.
        """
        ...


class KanikoImageBuilder(RegistryImageBuilder):
    """Builds on one registry, in builds by kaniko."""

    def __init__(
        self,
        *,
        registry: Registry,
        baselines: Baselines,
        capture: RootfsCapture,
        writer: LayerWriter,
        spool: Spool,
        rules: BuildRules,
        builds: KanikoBuilds,
        python: Sequence[str],
        build_registry: str,
    ) -> None:
        """Take the parts.

        Args:
            registry: Where images are.
            baselines: What bases have.
            capture: Of sandboxes.
            writer: Of layers.
            spool: Where they are written; each build takes twice its layer.
            rules: How; the layer is handed over in gzip, whatever they say.
            builds: Runs kaniko.
            python: The command in a build that runs a file as a Python program.
            build_registry: The registry's name for builds, host and port.
        """
        handed = replace(rules, zstd=False, exclude=(*rules.exclude, OWN))
        super().__init__(
            registry=registry, baselines=baselines, capture=capture, writer=writer, spool=spool, rules=handed
        )
        self._builds = builds
        self._python = tuple(python)
        self._build_registry = build_registry

    @override
    async def _keep(
        self,
        order: BuildOrder,
        base: BaseImage,
        made: Assembled,
        layer: WrittenLayer,
        told: KeptImage,
        directory: Path,
        clock: BuildClock,
        progress: Progress,
    ) -> KeptImage:
        total = layer.compressed_bytes
        labels = json.loads(made.config)["config"]["Labels"]
        digest = base.image.manifest.digest
        below = ImageReference(registry=self._build_registry, repository=order.base.repository, digest=digest)
        with clock.phase("push"):
            progress(BuildProgress(phase="push", total_bytes=total))
            text = dockerfile(below, base.config, self._python)
            handover = await asyncio.to_thread(pack, directory, layer, text, architecture=self._rules.architecture)
            try:
                await self._hand_over(order, handover, total, clock, progress)
                with clock.phase("build"):
                    pushed = await self._builds.run(
                        KanikoOrder(
                            sandbox=order.sandbox,
                            generation=order.generation,
                            base=below,
                            handover=ImageReference(
                                registry=self._rules.registry,
                                repository=order.repository,
                                digest=handover.manifest.digest,
                            ),
                            repository=order.repository,
                            tag=tag_of(order.generation),
                            labels=labels,
                            raw_bytes=layer.raw_bytes,
                        ),
                        timeout=clock.left,
                    )
            finally:
                await self._take_back(order.repository, handover)
            progress(BuildProgress(phase="push", bytes=total, total_bytes=total))
        with clock.phase("verify"):
            progress(BuildProgress(phase="verify"))
            return await self._verified(order, base, layer, labels, pushed, clock)

    @override
    def _difference(self, config: Mapping[str, Any], diff_ids: tuple[str, ...]) -> tuple[str, ...]:
        """The label says which difference was applied: kaniko's own layer is another tar than ours."""
        said = ((config.get("config") or {}).get("Labels") or {}).get(LAYER_DIFF_ID)
        return (said,) if len(diff_ids) == 1 and isinstance(said, str) and said else diff_ids

    async def _hand_over(
        self, order: BuildOrder, handover: Handover, total: int, clock: BuildClock, progress: Progress
    ) -> None:
        def sent(count: int) -> None:
            progress(BuildProgress(phase="push", bytes=min(count, total), total_bytes=total))

        for digest, content in ((handover.layer_digest, handover.file), (handover.config_digest, handover.config)):
            if not await self._registry.has_blob(order.repository, digest, timeout=clock.left):
                told = sent if content is handover.file else None
                await self._registry.upload(
                    order.repository,
                    content,
                    digest=digest,
                    timeout=clock.left,
                    sent=told,
                    commit=order.commit,
                )
        manifest = handover.manifest
        await self._registry.push(order.repository, manifest.digest, manifest, timeout=clock.left)

    async def _take_back(self, repository: str, handover: Handover) -> None:
        """Delete the hand-over; what stays has no tag, and goes with the registry's garbage collection."""

        async def delete() -> None:
            try:
                await self._registry.delete(repository, handover.manifest.digest, timeout=_REMOVAL)
            except RegistryKeepsError:
                return
            except SandboxdError as error:
                log.warning("image.handover_left", repository=repository, error=error.message)

        deleting = asyncio.ensure_future(delete())
        try:
            await asyncio.shield(deleting)
        except asyncio.CancelledError:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({deleting}, timeout=_REMOVAL.total_seconds())
            raise

    async def _verified(
        self,
        order: BuildOrder,
        base: BaseImage,
        layer: WrittenLayer,
        labels: Mapping[str, str],
        pushed: str,
        clock: BuildClock,
    ) -> KeptImage:
        """See that what the build has pushed is the base with the difference, and nothing but that."""
        repository = order.repository
        found = await self._registry.manifest(repository, tag_of(order.generation), timeout=clock.left)
        if found.digest != pushed:
            raise _spoiled("its tag names another one")
        image = read_manifest(found)
        config = await read_config(self._registry, repository, image, timeout=clock.left)
        above = user_layers(config, base.config)
        below = [one.digest for one in base.image.layers]
        if above is None or len(above) != 1 or [one.digest for one in image.layers[:-1]] != below:
            raise _spoiled("it is not the base with one layer")
        if _runs_as(config) != _runs_as(base.config):
            raise _spoiled("its configuration is not the base's")
        if ((config.get("config") or {}).get("Labels") or {}) != labels:
            raise _spoiled("its labels are not those of the commit")
        for blob in (image.config, *image.layers):
            if not await self._registry.has_blob(repository, blob.digest, timeout=clock.left):
                raise _spoiled(f"the registry has no blob {blob.digest} of it")
        reference = ImageReference(registry=order.base.registry, repository=repository, digest=found.digest)
        there = await self._baselines.layer_paths(reference, base=order.base, timeout=clock.left)
        if missing := await asyncio.to_thread(_paths_of, layer) - set(there):
            names = ", ".join(sorted(repr(path)[2:-1] for path in missing)[:3])
            raise _spoiled(f"it lacks {len(missing)} paths ({names})")
        return KeptImage(
            digest=found.digest,
            size=image.size,
            layers=len(image.layers),
            layer_digest=image.layers[-1].digest,
            diff_id=above[0],
            compressed_bytes=image.layers[-1].size,
        )


def dockerfile(base: ImageReference, config: Mapping[str, Any], python: Sequence[str]) -> str:
    """What kaniko does: one step, as root, and then the base's own user again.

    Raises:
        ImageInvalidError: The base's user is no name.
    """
    user = str((config.get("config") or {}).get("User") or "")
    if not _USER.fullmatch(user):
        raise ImageInvalidError(f"The base {base} has the user {user!r}, which no Dockerfile can say.", base=str(base))
    step = json.dumps([*python, f"{CONTEXT}/{APPLYING}", f"{CONTEXT}/{LAYER}", "/"])
    lines = [f"FROM {base}", f"RUN {step}"]
    if user:
        lines = [lines[0], "USER 0:0", lines[1], f"USER {user}"]
    return "\n".join(lines) + "\n"


def _paths_of(layer: WrittenLayer) -> set[bytes]:
    """What the layer has, without what it takes away."""
    with layer.file.open("rb") as file:
        return {
            one.path
            for one in entries_in(LayerStream(file.read, limit=_TAR_BYTES))
            if not one.path.rpartition(b"/")[2].startswith(WHITEOUT)
        }


def _runs_as(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides how a container runs, without what is empty, which kaniko leaves out."""
    inner = {name: value for name, value in (config.get("config") or {}).items() if value and name != "Labels"}
    return {"architecture": config.get("architecture"), "os": config.get("os"), **inner}


def _spoiled(what: str) -> UnavailableError:
    return UnavailableError(f"The image that kaniko made cannot be taken: {what}. Try again.")
