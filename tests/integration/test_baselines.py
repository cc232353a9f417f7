"""The entries of bases in a registry: made once for all who wait, kept, made anew; hostile layers are refused."""

import asyncio
import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import zstandard
from typing_extensions import override

from sandboxd.images import layer_reading
from sandboxd.images.baseline_file import read_records
from sandboxd.images.baselines import RegistryBaselines
from sandboxd.images.layer_reading import LayerStream, entries_in
from sandboxd.images.layer_tree import LayerTree
from sandboxd.images.ports import ImageReference
from sandboxd.images.registry import digest_of
from sandboxd.model.errors import DeadlineError, NotFoundError, UnavailableError
from sandboxd.model.image_errors import ImageInvalidError
from sandboxd.model.rootfs import BaselineEntry, BaselineRecord, EntryKind
from tests.eventually import eventually
from tests.fakes.registry import FakeRegistry
from tests.oci_images import GZIP, PLAIN, SOON, ZSTD, an_image, an_index, entry, hardlink, symlink, tar

LOWER = tar(entry("bin/sh", b"shell", mode=0o755), entry("etc/passwd", b"root"), entry("gone", b""))
UPPER = tar(entry(".wh.gone", b""), entry("opt/new", b"new"))


class CountingRegistry(FakeRegistry):
    """Counts what is fetched, and gives blobs only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    @override
    async def blob(self, repository: str, digest: str, *, size: int, timeout: timedelta) -> AsyncGenerator[bytes, None]:
        self.fetched.append(digest)
        await self.open.wait()
        async for piece in super().blob(repository, digest, size=size, timeout=timeout):
            yield piece


@pytest.fixture
def registry() -> CountingRegistry:
    return CountingRegistry()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
async def baselines(registry: CountingRegistry, cache: Path) -> AsyncIterator[RegistryBaselines]:
    yield RegistryBaselines(registry=registry, directory=cache, size_bytes=1 << 30)
    assert not list(cache.glob("*.building*"))
    assert not _workers()


def _workers() -> list[psutil.Process]:
    found = psutil.Process().children()
    return [one for one in found if any("baseline_worker" in word for word in one.cmdline())]


async def paths(baselines: RegistryBaselines, base: ImageReference) -> list[bytes]:
    made = await baselines.baseline(base, timeout=SOON)
    records = list(read_records(made.file))
    assert len(records) == made.entries
    return [record.entry.path for record in records]


EXPECTED = [b"", b"bin", b"bin/sh", b"etc", b"etc/passwd", b"opt", b"opt/new"]


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("media_types", [(GZIP, GZIP), (ZSTD, PLAIN), (PLAIN, ZSTD)])
async def test_a_base_is_what_its_layers_make(
    registry: CountingRegistry, baselines: RegistryBaselines, media_types: tuple[str, ...], docker: bool
) -> None:
    base = await an_image(LOWER, UPPER, media_types=media_types, docker=docker).push(registry, "base")

    assert await paths(baselines, base) == EXPECTED
    made = await baselines.baseline(base, timeout=SOON)
    assert next(one for one in read_records(made.file) if one.entry.path == b"bin/sh") == BaselineRecord(
        entry=BaselineEntry(path=b"bin/sh", kind=EntryKind.FILE, mode=0o755, uid=0, gid=0, size=5, mtime=1_700_000_000),
        sha256=bytes.fromhex(digest_of(b"shell").removeprefix("sha256:")),
    )


async def test_streams_of_several_members_and_frames_are_read_whole(
    registry: CountingRegistry, baselines: RegistryBaselines
) -> None:
    halves = LOWER[:700], LOWER[700:]
    members = b"".join(gzip.compress(half) for half in halves)
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    frames = skippable + b"".join(zstandard.compress(half) for half in halves) + skippable
    for blob, kind in ((members, GZIP), (frames, ZSTD)):
        base = await an_image(LOWER, media_types=[kind], blobs=[blob]).push(registry, "base")

        assert await paths(baselines, base) == [b"", b"bin", b"bin/sh", b"etc", b"etc/passwd", b"gone"]


@pytest.mark.parametrize("docker", [False, True])
async def test_of_an_index_the_platform_of_the_nodes_is_taken(
    registry: CountingRegistry, cache: Path, docker: bool
) -> None:
    images = {
        "arm64": an_image(tar(entry("arm", b"")), architecture="arm64", docker=docker),
        "amd64": an_image(tar(entry("amd", b"")), docker=docker),
    }
    for image in images.values():
        await image.push(registry, "base")
    index = an_index(images, docker=docker)
    await registry.push("base", index.digest, index, timeout=SOON)
    reference = ImageReference(registry="registry.test", repository="base", digest=index.digest)

    for architecture, name in (("amd64", b"amd"), ("arm64", b"arm")):
        baselines = RegistryBaselines(registry=registry, directory=cache, size_bytes=1 << 30, architecture=architecture)
        assert await paths(baselines, reference) == [b"", name]
    with pytest.raises(NotFoundError, match="linux/riscv64"):
        await RegistryBaselines(
            registry=registry, directory=cache, size_bytes=1 << 30, architecture="riscv64"
        ).baseline(reference, timeout=SOON)


async def test_an_image_for_other_nodes_is_refused(registry: CountingRegistry, baselines: RegistryBaselines) -> None:
    base = await an_image(LOWER, architecture="arm64").push(registry, "base")

    with pytest.raises(ImageInvalidError, match="is for arm64, not amd64"):
        await baselines.baseline(base, timeout=SOON)


async def test_all_who_wait_share_one_making_and_later_ones_need_no_registry(
    registry: CountingRegistry, baselines: RegistryBaselines, cache: Path
) -> None:
    image = an_image(LOWER, UPPER)
    base = await image.push(registry, "base")
    other = RegistryBaselines(registry=registry, directory=cache, size_bytes=1 << 30)

    made = await asyncio.gather(*(one.baseline(base, timeout=SOON) for one in (baselines, other) for _ in range(5)))

    assert len(set(made)) == 1
    assert sorted(registry.fetched) == sorted(image.blobs), "each blob once"
    registry.manifests.clear()
    assert await baselines.baseline(base, timeout=SOON) == made[0]


async def test_who_leaves_takes_nothing_from_those_who_wait(
    registry: CountingRegistry, baselines: RegistryBaselines
) -> None:
    base = await an_image(LOWER).push(registry, "base")
    registry.open.clear()
    leaving = asyncio.create_task(baselines.baseline(base, timeout=SOON))
    staying = asyncio.create_task(baselines.baseline(base, timeout=SOON))
    await eventually(lambda: bool(registry.fetched))

    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    with pytest.raises(DeadlineError):
        await baselines.baseline(base, timeout=timedelta(seconds=0.1))
    registry.open.set()

    assert (await staying).entries == 6


async def test_when_nobody_waits_any_more_nothing_is_left(
    registry: CountingRegistry, baselines: RegistryBaselines, cache: Path
) -> None:
    base = await an_image(LOWER).push(registry, "base")
    config = registry.manifests["base"][base.digest].content

    class StoppingRegistry(CountingRegistry):
        @override
        async def blob(
            self, repository: str, digest: str, *, size: int, timeout: timedelta
        ) -> AsyncGenerator[bytes, None]:
            async for piece in super().blob(repository, digest, size=size, timeout=timeout):
                yield piece
                if digest.encode() not in config[:300]:  # a layer, in its middle
                    await asyncio.Event().wait()

    stopping = StoppingRegistry()
    stopping.blobs, stopping.manifests = registry.blobs, registry.manifests
    slow = RegistryBaselines(registry=stopping, directory=cache, size_bytes=1 << 30)

    with pytest.raises(DeadlineError, match="not read in time"):
        await slow.baseline(base, timeout=timedelta(seconds=1))

    assert len(stopping.fetched) == 2
    assert not _workers()
    assert not list(cache.glob("base-*"))
    assert (await baselines.baseline(base, timeout=SOON)).entries == 6


async def test_a_damaged_file_is_made_anew(
    registry: CountingRegistry, baselines: RegistryBaselines, cache: Path
) -> None:
    base = await an_image(LOWER, UPPER).push(registry, "base")
    file = (await baselines.baseline(base, timeout=SOON)).file
    whole = file.read_bytes()

    for damaged in (whole[:-40], whole[:50] + b"\0" + whole[51:], b""):
        file.write_bytes(damaged)
        assert await paths(baselines, base) == EXPECTED


async def test_what_was_not_used_for_longest_goes(registry: CountingRegistry, cache: Path) -> None:
    bases = [await an_image(tar(entry(f"{n}", os.urandom(10)))).push(registry, "base") for n in range(3)]
    baselines = RegistryBaselines(registry=registry, directory=cache, size_bytes=1 << 30)
    files = [(await baselines.baseline(base, timeout=SOON)).file for base in bases[:2]]
    size = sum(file.stat().st_size for file in files) - 1
    for age, file in zip((10, 20), files, strict=True):
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    (cache / "base-0.building.tree").touch()
    os.utime(cache / "base-0.building.tree", (0, 0))

    small = RegistryBaselines(registry=registry, directory=cache, size_bytes=size)
    last = (await small.baseline(bases[2], timeout=SOON)).file

    assert set(cache.glob("*.entries")) == {files[0], last}
    assert not list(cache.glob("*.building*"))
    with pytest.raises(NotFoundError):
        await small.baseline(ImageReference(registry="r", repository="base", digest=f"sha256:{'0' * 64}"), timeout=SOON)


async def test_the_paths_of_the_layer_on_a_base_are_those_that_it_tells(
    registry: CountingRegistry, baselines: RegistryBaselines
) -> None:
    base = await an_image(LOWER, UPPER).push(registry, "base")
    layer = tar(
        entry("etc"), entry("etc/.wh.passwd", b""), entry("etc/b", b""), entry("etc/a-", b""), entry("etc/a/x", b"")
    )
    image = await an_image(LOWER, UPPER, layer).push(registry, "own")
    other = await an_image(UPPER, LOWER).push(registry, "other")

    for _ in range(2):
        assert await baselines.layer_paths(image, base=base, timeout=SOON) == [
            b"etc", b"etc/a/x", b"etc/a-", b"etc/b",
        ]  # fmt: skip
    told = await baselines.layer(image, base=base, timeout=SOON)
    hashes = {record.entry.path: record.sha256 for record in read_records(told.file)}
    assert (told.entries, hashes[b"etc/b"]) == (4, hashlib.sha256(b"").digest())
    assert await baselines.layer_paths(base, base=base, timeout=SOON) == []
    with pytest.raises(ImageInvalidError, match="is not made on"):
        await baselines.layer_paths(other, base=base, timeout=SOON)


async def test_a_registry_that_fails_in_the_middle_leaves_nothing(
    registry: CountingRegistry, baselines: RegistryBaselines, cache: Path
) -> None:
    image = an_image(LOWER, UPPER)
    base = await image.push(registry, "base")
    upper = registry.blobs["base"].pop(digest_of(image.layers[1]))

    with pytest.raises(NotFoundError):
        await baselines.baseline(base, timeout=SOON)
    assert not list(cache.glob("base-*"))

    registry.blobs["base"][digest_of(image.layers[1])] = upper
    assert await paths(baselines, base) == EXPECTED


async def test_a_cache_that_cannot_be_written_is_said(registry: CountingRegistry, tmp_path: Path) -> None:
    base = await an_image(LOWER).push(registry, "base")
    (tmp_path / "file").touch()

    with pytest.raises(UnavailableError, match="cache of base images cannot be used"):
        await RegistryBaselines(registry=registry, directory=tmp_path / "file", size_bytes=1).baseline(
            base, timeout=SOON
        )


def _pax_with(size: int) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _second_header_damaged() -> bytes:
    damaged = bytearray(tar(entry("a", b"1"), entry("b", b"2")))
    damaged[1024 + 148] ^= 0x41  # the checksum of the second one
    return bytes(damaged)


HOSTILE = {
    "no tar": (b"x" * 2000, "cannot be read"),
    "no gzip after all": (b"\x1f\x8b" + b"x" * 2000, "cannot be read"),
    "a cut gzip stream": (gzip.compress(LOWER)[:-10], "cut"),
    "something behind a gzip stream": (gzip.compress(LOWER) + b"more", "cannot be read"),
    "a cut zstd frame": (zstandard.compress(LOWER)[:-10], "cannot be read"),
    "a damaged header": (_second_header_damaged(), "header is damaged"),
    "a cut file": (tar(entry("a", b"x" * 5000))[:2000], "within a file"),
    "a path that leads out": (tar(entry("a/../../b", b"")), "leads out"),
    "a path that is too long": (tar(entry("a/" * 3000, b"")), "bytes"),
    "a link to nothing": (tar(hardlink("a", "b")), "no file"),
    "a link to itself": (tar(entry("a", b""), hardlink("a", "./a")), "to itself"),
    "a second name of a directory": (tar(entry("d"), hardlink("a", "d")), "no file"),
    "a link that leads out": (tar(entry("a", b""), hardlink("b", "../a")), "leads out"),
    "links that lead round": (tar(symlink("a", "b"), symlink("b", "a"), entry("a/x", b"")), "round"),
    "a file below a file": (tar(entry("a", b""), entry("a/b", b"")), "no directory"),
    "an unknown type": (tar(entry("a", b"", kind=b"Z")), "unknown type"),
    "a link without a target": (tar(symlink("a", "")), "without a target"),
    "attributes without end": (_pax_with(4 << 30), "attributes with"),
    "headers upon headers": (_pax_with(0) * 5000, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_or_damaged_layer_is_refused(
    registry: CountingRegistry, baselines: RegistryBaselines, cache: Path, name: str
) -> None:
    blob, text = HOSTILE[name]
    content = blob
    if blob.startswith(b"\x1f\x8b"):
        content = LOWER
    base = await an_image(content, media_types=[PLAIN], blobs=[blob]).push(registry, "base")

    with pytest.raises(ImageInvalidError, match=text):
        await baselines.baseline(base, timeout=SOON)

    assert not list(cache.glob("base-*"))


async def test_a_layer_that_is_not_what_the_image_says_is_refused(
    registry: CountingRegistry, baselines: RegistryBaselines
) -> None:
    base = await an_image(LOWER, diff_ids=[digest_of(UPPER)]).push(registry, "base")
    with pytest.raises(ImageInvalidError, match="not what the image says"):
        await baselines.baseline(base, timeout=SOON)

    base = await an_image(LOWER, UPPER, diff_ids=[digest_of(LOWER)]).push(registry, "base")
    with pytest.raises(ImageInvalidError, match="does not fit"):
        await baselines.baseline(base, timeout=SOON)


def test_a_bomb_ends_at_the_limit() -> None:
    bomb = io.BytesIO(gzip.compress(tar(entry("zero", bytes(1 << 24)))))

    with pytest.raises(ImageInvalidError, match="too large"):
        list(entries_in(LayerStream(bomb.read, limit=1 << 20)))


def test_entries_end_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxd.images.layer_tree.ENTRIES", 3)
    layer = io.BytesIO(tar(*(entry(f"{n}", b"") for n in range(4))))

    with LayerTree(tmp_path / "tree") as tree, pytest.raises(ImageInvalidError, match="more than 3 entries"):
        list(map(tree.apply, entries_in(LayerStream(layer.read, limit=1 << 20))))


def test_a_directory_is_made_for_what_is_deleted_in_it_as_containerd_does(tmp_path: Path) -> None:
    layer = io.BytesIO(tar(entry("a/.wh.b", b"")))

    with LayerTree(tmp_path / "tree") as tree:
        for one in entries_in(LayerStream(layer.read, limit=1 << 20)):
            tree.apply(one)
        assert [record.entry.path for record in tree.records()] == [b"", b"a"]
        assert not list(tree.records(told=True))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_both_forms(form: int) -> None:
    name, target = "n" * 90 + "/" + "ä" * 120, "t" * 150
    layer = io.BytesIO(tar(entry(name, b"1", uid=3_000_000), symlink("l", target), form=form))

    file, link = entries_in(LayerStream(layer.read, limit=1 << 20))

    assert (file.path, file.uid, link.link) == (name.encode(), 3_000_000, target.encode())


def test_an_empty_layer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(entries_in(LayerStream(io.BytesIO(bytes(1024)).read, limit=1 << 20))) == []
    monkeypatch.setattr(layer_reading, "META_BYTES", 100)
    with pytest.raises(ImageInvalidError, match="attributes with"):
        list(entries_in(LayerStream(io.BytesIO(tar(entry("x" * 2000, b""))).read, limit=1 << 20)))
