"""What keeping an image needs from others, and what it offers: capture, registry, build, probe.

The life of a commit: `RootfsCapture` streams the difference from a sandbox that runs, an `ImageBuilder` makes it one
layer on the base and pushes it under its generation's tag, an `ImageProbe` boots it, and only then the generation
becomes active (`images/commit.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from sandboxd.images.registry import NO_COMMIT
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.image import GenerationId
from sandboxd.model.image_names import split_image
from sandboxd.model.rootfs import BaselineEntry, CaptureFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """An image by digest: `registry/repository@sha256:…`."""

    registry: str
    """Host and port."""
    repository: str
    """Path below it, as `client-a/gemini-cli-user-b`."""
    digest: str
    """Of the manifest, `sha256:…`."""

    @classmethod
    def parse(cls, text: str) -> ImageReference:
        """Read what `str` writes.

        Raises:
            ValueError: It is no image by digest in a named registry.
        """
        registry, repository, digest = split_image(text)
        return cls(registry=registry, repository=repository, digest=digest)

    @override
    def __str__(self) -> str:
        """As a container runtime takes it."""
        return f"{self.registry}/{self.repository}@{self.digest}"


class RootfsCapture(Protocol):
    """Streams what a running sandbox's root file system has that its base has not."""

    def capture(
        self,
        sandbox: SandboxId,
        incarnation: IncarnationId,
        baseline: AsyncIterator[BaselineEntry],
        *,
        previous: Sequence[bytes],
        exclude: Sequence[bytes],
        timeout: timedelta,
    ) -> AsyncIterator[CaptureFrame]:
        """Stream the difference; the last frame is a `CaptureEnd`, or the stream has failed.

        Args:
            sandbox: Which.
            incarnation: Its life; another one is refused.
            baseline: The base's entries in the order of `walk_key`.
            previous: Paths of the present user layer, in that order: they are always sent when they are there.
            exclude: Paths that are left out with all below, beside mounts, which always are.
            timeout: For all of it.

        Raises:
            UnavailableError: The incarnation does not run or its agent does not answer; also in the middle.
            DeadlineError: `timeout` is over.
        """
        ...


class SecretPolicy(StrEnum):
    """What happens with keys and tokens that the scan finds in what is kept."""

    KEEP = "keep"
    """They are named and stay: found by patterns, they may be none."""
    STRIP = "strip"
    """Files with them are left out and named."""
    REFUSE = "refuse"
    """There is no commit until they are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What a commit may be at most; reaching a limit is not exceeding it."""

    raw_bytes: int
    """Of the layer as a tar: what it takes on each node."""
    compressed_bytes: int
    entries: int = 300_000
    file_bytes: int = 8 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOrder:
    """What is to be built."""

    sandbox: SandboxId
    incarnation: IncarnationId
    base: ImageReference
    repository: str
    """Where it is pushed."""
    generation: int
    """Its tag is `g` and six digits."""
    limits: ImageLimits
    labels: Mapping[str, str] = field(default_factory=dict)
    previous: ImageReference | None = None
    """The active generation on the same base, whose digest comes out again when nothing has changed."""
    dry_run: bool = False
    """Capture and count, push nothing."""
    secrets: SecretPolicy = SecretPolicy.STRIP
    commit: GenerationId = NO_COMMIT
    """Which it is, for those who look after what broke off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildProgress:
    """How far a build is."""

    phase: str
    """`capture`, `push` or `verify`."""
    entries: int = 0
    """Paths looked at."""
    bytes: int = 0
    """Of content captured, or of the layer pushed."""
    total_bytes: int = 0
    """Where known, else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What was not kept, by reason, with a few of its paths for people."""

    reason: str
    """As in `SkippedPath.reason`; or the layer's writer's own: `torn`, `token` (there is a key or token in it), and of
    paths that were kept, `attribute` (without some of their attributes) and `secret_kept` (with a key, by policy)."""
    count: int
    paths: Sequence[str] = ()
    """At most ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """What came of a build."""

    image: ImageReference | None
    """None of a dry run."""
    unchanged: bool
    """The digest is the previous one's, and nothing was pushed."""
    layer_digest: str
    diff_id: str
    raw_bytes: int
    compressed_bytes: int
    """Of the user's layer."""
    image_bytes: int
    """Of all layers and the configuration, compressed."""
    layers: int
    entries: int
    largest: Sequence[tuple[str, int]] = ()
    """The largest paths with their bytes, at most ten."""
    left_out: Sequence[LeftOut] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A base image's entries in a file of the cache, in the order of `walk_key` (`images/baseline_file.py`).

    The first is the root itself, `b""`. Devices are not among them. The cache may let go of a file that is not used for
    long: whoever reads it then gets a `BaselineDamagedError`, and asks for it again.
    """

    file: Path
    entries: int


class Baselines(Protocol):
    """What base images and present user layers have, read from the registry and never from a sandbox."""

    async def baseline(self, base: ImageReference, *, timeout: timedelta) -> Baseline:
        """Return the base's entries, made once for each digest.

        Raises:
            NotFoundError: The registry has no such image.
            UnavailableError: It does not answer, or what it has is no image.
        """
        ...

    async def layer_paths(self, image: ImageReference, *, base: ImageReference, timeout: timedelta) -> Sequence[bytes]:
        """Return the paths in the image's one layer on top of the base, in the order of `walk_key`. Else as above."""
        ...

    async def layer(self, image: ImageReference, *, base: ImageReference, timeout: timedelta) -> Baseline:
        """Return the entries of that layer: what it tells itself, without what it deletes. Else as `baseline`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOrder:
    """What a layer is written against, and where."""

    baseline: Baseline
    directory: Path
    """Where the layer is spooled; the caller removes it."""
    limits: ImageLimits
    zstd: bool = True
    """Else gzip, for registries or nodes that are old."""
    secrets: SecretPolicy = SecretPolicy.STRIP


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenLayer:
    """A complete layer in a file, canonical: the same root file system gives the same bytes."""

    file: Path
    media_type: str
    digest: str
    """`sha256:…` of the file."""
    diff_id: str
    """`sha256:…` of the tar in it."""
    raw_bytes: int
    compressed_bytes: int
    entries: int
    """Of the tar, whiteouts among them; 0 where nothing differs from the base."""
    largest: Sequence[tuple[str, int]] = ()
    """The largest paths with their bytes, at most ten."""
    left_out: Sequence[LeftOut] = ()
    scanned: int = 0
    """Paths that the capture looked at."""


class LayerWriter(Protocol):
    """Makes a layer of a captured difference, in a process of its own, and believes none of it."""

    async def write(
        self,
        frames: AsyncIterator[CaptureFrame],
        order: LayerOrder,
        *,
        timeout: timedelta,
        progress: Callable[[BuildProgress], None],
    ) -> WrittenLayer:
        """Write the layer; nothing is left in the directory when it fails.

        Raises:
            ImageTooLargeError: A limit was exceeded; it names the largest paths.
            CaptureInvalidError: What the sandbox sent is no difference: out of order, escaping, cut, contradictory.
            SecretsFoundError: The policy refuses what was found.
            FileTornError: A program's or a package database's file changed all the time while it was read.
            DeadlineError: `timeout` is over.
        """
        ...


class ImageBuilder(Protocol):
    """Builds and pushes a candidate: capture, validate, push, verify. Nothing becomes active by it."""

    async def build(
        self, order: BuildOrder, *, timeout: timedelta, progress: Callable[[BuildProgress], None]
    ) -> BuiltImage:
        """Build it. Safe to repeat; a cancelled build leaves no upload open.

        Raises:
            ImageTooLargeError: A limit was exceeded; it names the largest paths.
            UnavailableError: The sandbox or the registry does not do it now.
            DeadlineError: `timeout` is over.
        """
        ...


class ImageProbe(Protocol):
    """Boots a candidate once, without its owner's volumes and without a network."""

    async def probe(self, sandbox: SandboxId, image: ImageReference, *, timeout: timedelta) -> None:
        """Return when it boots and answers.

        Raises:
            ImageBrokenError: It does not; the message says at which step.
            UnavailableError: Nothing can be said of it now.
            DeadlineError: `timeout` is over.
        """
        ...


class RunningImages(Protocol):
    """Which image a sandbox runs from, and which one its next start takes."""

    async def base(self) -> ImageReference:
        """Return what a sandbox without an image of its own would be started from now.

        Raises:
            UnavailableError: That is not known yet, or nothing says it.
            ImageUnnamedError: It is named by a tag.
        """
        ...

    async def image(self, sandbox: SandboxId, incarnation: IncarnationId, *, timeout: timedelta) -> ImageReference:
        """Return what this incarnation was started from, as its backend knows it, by digest.

        Raises:
            UnavailableError: It does not run, or its backend does not say now.
            ImageUnnamedError: It runs from an image that is named by a tag.
        """
        ...

    async def set_image(self, sandbox: SandboxId, image: ImageReference | None, *, timeout: timedelta) -> None:
        """Let every next start take this image, or the base where it is None; what runs goes on.

        Also where nobody asks for the start: a pod that is evicted comes back from this image. A sandbox that has no
        place is success: its first start takes what `SandboxSpec.image` says, as every start does.
        """
        ...
