"""`ImageBuilder` on a registry: captured, written as one layer on the base, pushed under its tag, verified.

How an image is made of base and layer is a step of its own, which `images/kaniko.py` does in another way.

Nothing becomes active here. A build that is repeated finds what an earlier one has pushed, and ends in the same
digest; one that fails or is cancelled leaves no upload open and nothing in the spool directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from sandboxd.images.assembling import Assembled, assemble, user_layers
from sandboxd.images.baseline_file import read_records
from sandboxd.images.manifests import ImageManifest, find_image, read_config, read_manifest
from sandboxd.images.ports import (
    Baseline,
    Baselines,
    BuildOrder,
    BuildProgress,
    BuiltImage,
    ImageBuilder,
    ImageReference,
    LayerOrder,
    LayerWriter,
    RootfsCapture,
    WrittenLayer,
)
from sandboxd.images.pushing import ImagePush
from sandboxd.images.registry import Registry
from sandboxd.images.spool import Spool
from sandboxd.model.errors import DeadlineError, NotFoundError, WrongStateError
from sandboxd.model.image import tag_of
from sandboxd.model.image_errors import BaselineDamagedError
from sandboxd.model.rootfs import BaselineEntry

_BATCH: Final = 1000
"""Entries that are read in a thread at a time: some milliseconds."""

Progress = Callable[[BuildProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRules:
    """How images are built, whatever is in them."""

    registry: str
    """Name of the registry as nodes know it, host and port: all images of an installation are there."""
    architecture: str = "amd64"
    """Of the nodes."""
    zstd: bool = True
    """How layers are compressed; else by gzip."""
    exclude: Sequence[bytes] = ()
    """Paths that no image has, beside those of the rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImage:
    """What is built on, for the nodes' architecture."""

    reference: ImageReference
    image: ImageManifest
    config: Mapping[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptImage:
    """An image that the registry has."""

    digest: str
    size: int
    """Bytes of all layers, compressed, and the configuration."""
    layers: int
    layer_digest: str
    """Of the layer above the base, as the next three; empty and 0 where there is none."""
    diff_id: str
    compressed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Previous:
    reference: ImageReference
    difference: tuple[str, ...]
    """What it has above the base, as `diff_id`s of our own layers."""
    paths: Sequence[bytes]
    kept: KeptImage


@dataclass(slots=True)
class BuildClock:
    """What is left of a build's time, and how long each phase took."""

    end: float
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> timedelta:
        """What there is yet, never nothing at all."""
        return timedelta(seconds=max(self.end - time.monotonic(), 0.001))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time as this phase's."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0) + time.monotonic() - began


class RegistryImageBuilder(ImageBuilder):
    """Builds on one registry."""

    def __init__(
        self,
        *,
        registry: Registry,
        baselines: Baselines,
        capture: RootfsCapture,
        writer: LayerWriter,
        spool: Spool,
        rules: BuildRules,
    ) -> None:
        self._registry = registry
        self._baselines = baselines
        self._capture = capture
        self._writer = writer
        self._spool = spool
        self._rules = rules

    @override
    async def build(self, order: BuildOrder, *, timeout: timedelta, progress: Progress) -> BuiltImage:
        clock = BuildClock(time.monotonic() + timeout.total_seconds())
        if order.base.registry != self._rules.registry:
            raise WrongStateError(
                f"The sandbox's base image is in the registry {order.base.registry}, and images are kept in "
                f"{self._rules.registry}. Copy the base there and let SandboxTemplates name it there.",
                registry=order.base.registry,
                expected=self._rules.registry,
            )
        scope = asyncio.timeout(timeout.total_seconds())
        try:
            async with scope, self._spool.place() as directory:
                return await self._build(order, directory, clock, progress)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineError(
                f"The image of sandbox {order.sandbox} was not built in {timeout.total_seconds():.0f} s. Try again.",
                sandbox=order.sandbox,
            ) from error

    async def _build(self, order: BuildOrder, directory: Path, clock: BuildClock, progress: Progress) -> BuiltImage:
        progress(BuildProgress(phase="capture"))
        with clock.phase("baseline"):
            base = await self._base(order.base, clock)
            previous = await self._previous(order, base, clock)
        layer = await self._layer(order, previous, directory, clock, progress)
        kept = layer if layer.entries else None
        if previous is not None and previous.difference == (() if kept is None else (kept.diff_id,)):
            return _told(order, layer, clock, image=previous.reference, kept=previous.kept)
        made = assemble(
            base=order.base,
            image=base.image,
            config=base.config,
            layer=kept,
            labels=order.labels,
            generation=order.generation,
        )
        told = KeptImage(
            digest=made.manifest.digest,
            size=made.size,
            layers=len(made.layers),
            layer_digest=layer.digest,
            diff_id=layer.diff_id,
            compressed_bytes=layer.compressed_bytes,
        )
        if order.previous is None and kept is None:  # the base has all of it
            return _told(order, layer, clock, image=order.base, kept=told)
        if not order.dry_run:
            if kept is None:
                await self._push(order, base, made, None, clock, progress)
            else:
                told = await self._keep(order, base, made, kept, told, directory, clock, progress)
        image = ImageReference(registry=self._rules.registry, repository=order.repository, digest=told.digest)
        return _told(order, layer, clock, image=image, kept=told, unchanged=False)

    async def _keep(
        self,
        order: BuildOrder,
        base: BaseImage,
        made: Assembled,
        layer: WrittenLayer,
        told: KeptImage,
        directory: Path,  # noqa: ARG002 - of the build, for builders that write more than the layer
        clock: BuildClock,
        progress: Progress,
    ) -> KeptImage:
        """Let the registry have the base with the layer on it; say what that became."""
        await self._push(order, base, made, layer, clock, progress)
        return told

    def _difference(
        self,
        config: Mapping[str, Any],  # noqa: ARG002 - where a builder writes down what its own layers do not say
        diff_ids: tuple[str, ...],
    ) -> tuple[str, ...]:
        """Say what an image has above its base, as `diff_id`s of layers that our writer made."""
        return diff_ids

    async def _push(
        self,
        order: BuildOrder,
        base: BaseImage,
        made: Assembled,
        layer: WrittenLayer | None,
        clock: BuildClock,
        progress: Progress,
    ) -> None:
        pushing = ImagePush(
            registry=self._registry,
            repository=order.repository,
            tag=tag_of(order.generation),
            commit=order.commit,
            left=lambda: clock.left,
        )
        with clock.phase("push"):
            source, layers = order.base.repository, base.image.layers
            await pushing.push(made, layer, base=layers, source=source, progress=progress)
        with clock.phase("verify"):
            progress(BuildProgress(phase="verify"))
            await pushing.verify(made)

    async def _base(self, reference: ImageReference, clock: BuildClock) -> BaseImage:
        image = await find_image(
            self._registry,
            reference.repository,
            reference.digest,
            architecture=self._rules.architecture,
            timeout=clock.left,
        )
        config = await read_config(self._registry, reference.repository, image, timeout=clock.left)
        return BaseImage(reference=reference, image=image, config=config)

    async def _previous(self, order: BuildOrder, base: BaseImage, clock: BuildClock) -> _Previous | None:
        """Read the active generation; None where there is none on this base, or the registry has lost it."""
        reference = order.previous
        if reference is None:
            return None
        try:
            found = read_manifest(
                await self._registry.manifest(reference.repository, reference.digest, timeout=clock.left)
            )
            config = await read_config(self._registry, reference.repository, found, timeout=clock.left)
            diff_ids = user_layers(config, base.config)
            if diff_ids is None:
                return None
            paths = await self._baselines.layer_paths(reference, base=order.base, timeout=clock.left)
        except NotFoundError:
            return None
        above = found.layers[-1] if diff_ids else None
        return _Previous(
            reference=reference,
            difference=self._difference(config, diff_ids),
            paths=paths,
            kept=KeptImage(
                digest=reference.digest,
                size=found.size,
                layers=len(found.layers),
                layer_digest=above.digest if above else "",
                diff_id=diff_ids[-1] if diff_ids else "",
                compressed_bytes=above.size if above else 0,
            ),
        )

    async def _layer(
        self, order: BuildOrder, previous: _Previous | None, directory: Path, clock: BuildClock, progress: Progress
    ) -> WrittenLayer:
        for attempt in (1, 2):
            with clock.phase("baseline"):
                baseline = await self._baselines.baseline(order.base, timeout=clock.left)
            try:
                with clock.phase("capture"):
                    return await self._write(order, baseline, previous, directory, clock, progress)
            except BaselineDamagedError:  # the cache let go of it in between
                if attempt == 2:
                    raise
        raise AssertionError("unreachable: the second attempt returns or raises")

    async def _write(
        self,
        order: BuildOrder,
        baseline: Baseline,
        previous: _Previous | None,
        directory: Path,
        clock: BuildClock,
        progress: Progress,
    ) -> WrittenLayer:
        frames = self._capture.capture(
            order.sandbox,
            order.incarnation,
            entries_of(baseline),
            previous=() if previous is None else previous.paths,
            exclude=self._rules.exclude,
            timeout=clock.left,
        )
        wanted = LayerOrder(
            baseline=baseline,
            directory=directory,
            limits=order.limits,
            zstd=self._rules.zstd,
            secrets=order.secrets,
        )
        return await self._writer.write(frames, wanted, timeout=clock.left, progress=progress)


def _told(
    order: BuildOrder,
    layer: WrittenLayer,
    clock: BuildClock,
    *,
    image: ImageReference,
    kept: KeptImage,
    unchanged: bool = True,
) -> BuiltImage:
    return BuiltImage(
        image=None if order.dry_run else image,
        unchanged=unchanged,
        layer_digest=kept.layer_digest or layer.digest,
        diff_id=kept.diff_id or layer.diff_id,
        raw_bytes=layer.raw_bytes,
        compressed_bytes=kept.compressed_bytes,
        image_bytes=kept.size,
        layers=kept.layers,
        entries=layer.entries,
        largest=layer.largest,
        left_out=layer.left_out,
        seconds=clock.seconds,
    )


async def entries_of(baseline: Baseline) -> AsyncGenerator[BaselineEntry, None]:
    """Yield a baseline's entries without holding up the loop.

    Raises:
        BaselineDamagedError: At the end at the latest.
    """
    records = read_records(baseline.file)
    try:
        while batch := await asyncio.to_thread(lambda: [one.entry for one in itertools.islice(records, _BATCH)]):
            for entry in batch:
                yield entry
    finally:
        with contextlib.suppress(ValueError):  # a thread is still in it, and lets go of it at its end
            records.close()  # type: ignore[attr-defined]  # a generator
