"""`Baselines` from the registry: a base's layers are read once in a process of their own, and kept in a directory.

A file is named by what it was made of and is renamed to that name when it is whole; whoever makes it holds a lock, so
that several processes with one directory make it once. What was not used for longest goes when there is too much.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from typing_extensions import override

from sandboxd.images.baseline_file import VERSION, check_file, read_records, write_records
from sandboxd.images.baseline_process import make_entries
from sandboxd.images.baseline_worker import Job
from sandboxd.images.manifests import Descriptor, ImageManifest, diff_ids_of, find_image, read_config
from sandboxd.images.ports import Baseline, Baselines, ImageReference
from sandboxd.images.registry import Registry
from sandboxd.model.errors import DeadlineError, UnavailableError
from sandboxd.model.image_errors import BaselineDamagedError, ImageInvalidError

BUILD_TIMEOUT: Final = timedelta(minutes=20)
"""For reading one image: 30 GB at 25 MB/s. Whoever waits for it may have less time, and a later one finds it made."""
_LOCK_SECONDS: Final = 0.5
"""Between two looks whether another process has ended."""
_ENTRIES: Final = ".entries"
_BUILDING: Final = ".building"

_Make = Callable[[Path], Awaitable[int]]
"""Writes a file of entries and returns how many."""


@dataclass(slots=True)
class _Building:
    task: asyncio.Task[int]
    waiting: int = 0
    """Callers; when the last one leaves, it is not made any further."""


class RegistryBaselines(Baselines):
    """Makes and keeps the entries of base images and of the layers on them."""

    def __init__(
        self,
        *,
        registry: Registry,
        directory: Path,
        size_bytes: int,
        architecture: str = "amd64",
        build_timeout: timedelta = BUILD_TIMEOUT,
    ) -> None:
        """Take the parts.

        Args:
            registry: Where the images are.
            directory: Of the cache; made where it is not there.
            size_bytes: Of all files in it together, beside the one that was made last. The sandbox's image,
                28,000 entries, takes 1 MB, and some MB more while it is read.
            architecture: Of the nodes: `amd64` or `arm64`.
            build_timeout: For reading one image.
        """
        self._registry = registry
        self._directory = directory
        self._size = size_bytes
        self._architecture = architecture
        self._build_timeout = build_timeout
        self._building: dict[Path, _Building] = {}

    @override
    async def baseline(self, base: ImageReference, *, timeout: timedelta) -> Baseline:
        async def make(target: Path) -> int:
            image = await self._image(base)
            return await self._make(base.repository, image, image.layers, target, told=False)

        file = self._file("base", base)
        return Baseline(file=file, entries=await self._kept(file, make, base, timeout))

    @override
    async def layer_paths(self, image: ImageReference, *, base: ImageReference, timeout: timedelta) -> Sequence[bytes]:
        told = await self.layer(image, base=base, timeout=timeout)
        return await asyncio.to_thread(lambda: [record.entry.path for record in read_records(told.file)])

    @override
    async def layer(self, image: ImageReference, *, base: ImageReference, timeout: timedelta) -> Baseline:
        async def make(target: Path) -> int:
            found, below = await self._image(image), await self._image(base)
            count = len(below.layers)
            if [one.digest for one in found.layers[:count]] != [one.digest for one in below.layers]:
                raise ImageInvalidError(f"The image {image} is not made on {base}.", image=str(image), base=str(base))
            return await self._make(image.repository, found, found.layers[count:], target, told=True)

        file = self._file("layer", image)
        return Baseline(file=file, entries=await self._kept(file, make, image, timeout))

    def _file(self, what: str, image: ImageReference) -> Path:
        digest = image.digest.removeprefix("sha256:")
        if not digest.isalnum():
            raise ImageInvalidError(f"{image} is no image by digest.", image=str(image))
        return self._directory / f"{what}-{digest}-{self._architecture}.v{VERSION}{_ENTRIES}"

    async def _kept(self, file: Path, make: _Make, image: ImageReference, timeout: timedelta) -> int:
        """Return how many entries the file has, made where it is not; all who wait for it share that."""
        building = self._building.get(file)
        if building is None:
            task = asyncio.create_task(self._find_or_make(file, make, image), name=f"entries of {image}")
            building = self._building[file] = _Building(task)
        building.waiting += 1
        try:
            async with _within(timeout, image):
                return await asyncio.shield(building.task)
        finally:
            building.waiting -= 1
            if not building.waiting:
                if self._building.get(file) is building:
                    del self._building[file]
                building.task.cancel()
                await asyncio.wait([building.task])
                if not building.task.cancelled():
                    building.task.exception()  # whoever left does not want to hear of it

    async def _find_or_make(self, file: Path, make: _Make, image: ImageReference) -> int:
        with contextlib.suppress(BaselineDamagedError):
            return await asyncio.to_thread(_use, file)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            async with _within(self._build_timeout, image), _locked(self._lock_of(file)):
                with contextlib.suppress(BaselineDamagedError):
                    return await asyncio.to_thread(_use, file)
                target = file.with_suffix(_BUILDING)
                try:
                    entries = await make(target)
                    target.replace(file)
                finally:
                    target.unlink(missing_ok=True)
                await asyncio.to_thread(self._evict, file)
                return entries
        except OSError as error:
            raise UnavailableError(f"The cache of base images cannot be used: {error}.") from error

    async def _image(self, reference: ImageReference) -> ImageManifest:
        return await find_image(
            self._registry,
            reference.repository,
            reference.digest,
            architecture=self._architecture,
            timeout=self._build_timeout,
        )

    async def _make(
        self, repository: str, image: ImageManifest, layers: Sequence[Descriptor], target: Path, *, told: bool
    ) -> int:
        config = await read_config(self._registry, repository, image, timeout=self._build_timeout)
        if config.get("architecture", self._architecture) != self._architecture:
            raise ImageInvalidError(
                f"The image {image.manifest.digest} is for {config['architecture']}, not {self._architecture}.",
                digest=image.manifest.digest,
            )
        if not layers:
            return await asyncio.to_thread(write_records, target, ())
        job = Job(
            file=str(target),
            scratch=f"{target}.tree",
            sizes=[layer.size for layer in layers],
            diff_ids=[*diff_ids_of(config)[len(image.layers) - len(layers) :]],
            told=told,
        )
        return await make_entries(job, [self._blob(repository, layer) for layer in layers])

    def _blob(self, repository: str, layer: Descriptor) -> AsyncGenerator[bytes, None]:
        return self._registry.blob(repository, layer.digest, size=layer.size, timeout=self._build_timeout)

    def _lock_of(self, file: Path) -> Path:
        """One of a few locks: files of locks cannot be removed while somebody may wait for them."""
        return self._directory / f"lock-{file.name.partition('-')[2][:1]}"

    def _evict(self, keep: Path) -> None:
        """Remove what was not used for longest, and what a process has left that was killed."""
        known = sorted(found for found in _ages(self._directory, _ENTRIES) if found[1] != keep)
        left = self._size - sum(size for _, _, size in known)
        for _, path, size in known:
            if left >= 0:
                break
            left += size
            path.unlink(missing_ok=True)
        abandoned = time.time() - 2 * self._build_timeout.total_seconds()
        for used, path, _ in _ages(self._directory, f"{_BUILDING}*"):
            if used < abandoned:
                path.unlink(missing_ok=True)


def _ages(directory: Path, ending: str) -> Iterator[tuple[float, Path, int]]:
    """When each file was used last, and its bytes; another process may remove them meanwhile."""
    for path in directory.glob(f"*{ending}"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            yield status.st_mtime, path, status.st_size


def _use(file: Path) -> int:
    """Return how many entries a whole file has, and note that it was used.

    Raises:
        BaselineDamagedError: It is absent, cut or damaged.
    """
    entries = check_file(file)
    with contextlib.suppress(OSError):
        os.utime(file)
    return entries


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold a lock that ends with its holder, also in other processes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_SECONDS)
        yield
    finally:
        os.close(descriptor)


@asynccontextmanager
async def _within(timeout: timedelta, image: ImageReference) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            yield
    except TimeoutError as error:
        raise DeadlineError(f"The entries of {image} were not read in time. Try again.", image=str(image)) from error
