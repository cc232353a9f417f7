"""What every builder of images promises: on a registry in memory, on a real docker-registry, and by a fake of kaniko.

What a builder declares to lose (`BuildWorld.losses`) is not asked of it. Of kaniko alone is what
test_image_builder_kaniko.py asks; the real one has tests/integration/test_kaniko.py and tests/cluster/test_kaniko.py.
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.images.layer_process import WorkerLayerWriter
from sandboxd.images.ports import BuildProgress, ImageLimits, ImageReference
from sandboxd.images.registry import DOCKER_MANIFEST, Registry
from sandboxd.model.errors import DeadlineError, NotFoundError, UnavailableError, WrongStateError
from sandboxd.model.image_errors import CaptureInvalidError, ImageInvalidError, ImageTooLargeError, SpoolFullError
from tests.build_world import LOWER, REPOSITORY, UPPER, BuildWorld, Loss
from tests.eventually import eventually
from tests.fakes.kaniko import FakeKanikoBuilds
from tests.fakes.registry import FakeRegistry
from tests.oci_images import SOON, an_image, an_index, entry, tar
from tests.registry_front import a_registry

BASE_FILES = {b"bin/sh", b"etc/passwd", b"usr/share/doc/old"}
WorldMaker = Callable[..., Awaitable[BuildWorld]]


@pytest.fixture(params=["fake", "real", "kaniko"])
def builder(request: pytest.FixtureRequest) -> str:
    """Which one: on a registry in memory, on a real one, or by a fake of kaniko on one in memory."""
    return str(request.param)


@pytest.fixture
async def registry(builder: str, tmp_path: Path) -> AsyncIterator[Registry]:
    if builder != "real":
        yield FakeRegistry()
        return
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry (Debian: apt-get install docker-registry)")
    async with a_registry(tmp_path) as real, OciRegistry(real.address, plain=True, chunk_bytes=64 << 10) as client:
        yield client
    assert real.open_uploads() == []


@pytest.fixture
async def make_world(builder: str, registry: Registry, tmp_path: Path) -> AsyncIterator[WorldMaker]:
    """Makes the world of the builder, with what `BuildWorld.make` takes; no hand-over is left of whatever it does."""
    builds = FakeKanikoBuilds(registry=registry) if builder == "kaniko" else None

    async def make(**changes: Any) -> BuildWorld:
        return await BuildWorld.make(registry, tmp_path, builds=builds, **changes)

    yield make
    for run in () if builds is None else builds.runs:
        with pytest.raises(NotFoundError):
            await registry.manifest(run.repository, run.handover.digest, timeout=SOON)


@pytest.fixture
async def world(make_world: WorldMaker) -> BuildWorld:
    return await make_world()


async def test_what_is_built_is_the_base_with_one_layer(world: BuildWorld) -> None:
    content = os.urandom(300_000)
    world.capture.put(b"opt/tool/run", content, mode=0o4755)
    world.capture.remove(b"usr/share/doc/old")

    built = await world.build()

    assert built.image is not None
    assert (built.image.registry, built.image.repository) == ("registry.test", REPOSITORY)
    files = await world.files_of(built)
    assert files.keys() == {b"bin/sh", b"etc/passwd", b"opt/tool/run"}
    assert files[b"opt/tool/run"].sha256 == hashlib.sha256(content).digest()
    assert files[b"opt/tool/run"].entry.mode == 0o4755
    assert (built.unchanged, built.layers) == (False, 3)
    assert built.image_bytes > built.compressed_bytes > 300_000
    assert built.largest[0][0].endswith("opt/tool/run")
    assert await world.registry.tags(REPOSITORY, timeout=SOON) == ["g000001"]
    tagged = await world.registry.manifest(REPOSITORY, "g000001", timeout=SOON)
    assert tagged.digest == built.image.digest
    assert {"capture", "push", "verify"} <= built.seconds.keys()
    phases = [said.phase for said in world.progress]
    assert phases == sorted(phases, key=["capture", "push", "verify"].index)
    pushed = [said.bytes for said in world.progress if said.phase == "push"]
    assert pushed == sorted(pushed)
    assert pushed[0] == 0
    assert world.progress[-2] == BuildProgress(phase="push", bytes=pushed[-1], total_bytes=pushed[-1])
    assert pushed[-1] > 300_000


async def test_the_configuration_is_the_bases_with_the_layer_and_labels_that_name_our_own(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", b"1")
    base = an_image(LOWER, UPPER).config
    tried = await world.build(dry_run=True)

    built = await world.build()

    config, manifest = await world.config_of(built), await world.manifest_of(built)
    assert config["rootfs"]["diff_ids"] == [*base["rootfs"]["diff_ids"], built.diff_id]
    if Loss.HISTORY not in world.losses:
        assert config["history"] == [*base["history"], {"created_by": "sandboxd commit"}]
    assert config["config"]["Env"] == base["config"]["Env"]
    assert config["config"]["Labels"] == {
        "of": "base",
        "dev.sandboxd.client": "client-a",
        "dev.sandboxd.generation": "1",
        "dev.sandboxd.base": world.base.digest,
        "dev.sandboxd.layer-diff-id": tried.diff_id,
    }
    assert (tried.diff_id == built.diff_id) is (Loss.SAME_BYTES not in world.losses)
    assert len(manifest["layers"]) == len(config["rootfs"]["diff_ids"])
    assert manifest["layers"][-1]["digest"] == built.layer_digest
    assert manifest["layers"][-1]["size"] == built.compressed_bytes


@pytest.mark.parametrize("zstd", [True, False])
async def test_a_base_with_dockers_media_types_gets_ocis_throughout_or_keeps_its_own(
    make_world: WorldMaker, zstd: bool
) -> None:
    world = await make_world(image=an_image(LOWER, UPPER, docker=True), zstd=zstd)
    world.capture.put(b"opt/a", b"1")

    built = await world.build()

    assert (await world.files_of(built)).keys() == BASE_FILES | {b"opt/a"}
    manifest = await world.manifest_of(built)
    if Loss.MEDIA_TYPES in world.losses:
        assert manifest["mediaType"] == DOCKER_MANIFEST
        return
    types = [manifest["mediaType"], manifest["config"]["mediaType"], *(one["mediaType"] for one in manifest["layers"])]
    assert types == [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        f"application/vnd.oci.image.layer.v1.tar+{'zstd' if zstd else 'gzip'}",
    ]


async def test_nothing_changed_is_the_base_and_nothing_is_pushed(world: BuildWorld) -> None:
    world.capture.touched = {b"bin", b"etc"}  # directories, by what a runtime makes in them

    built = await world.build()

    assert (built.unchanged, built.image, built.entries) == (True, world.base, 0)
    assert not {"upload", "push", "mount", "copy"} & set(world.registry.calls)
    assert await world.registry.tags(REPOSITORY, timeout=SOON) == []


async def test_nothing_changed_since_a_generation_is_that_generation(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", b"1")
    first = await world.build()
    world.registry.calls.clear()

    again = await world.build(generation=2, previous=first.image)

    assert (again.unchanged, again.image) == (True, first.image)
    assert (again.image_bytes, again.layers) == (first.image_bytes, first.layers)
    assert not {"upload", "push", "mount", "copy"} & set(world.registry.calls)
    assert await world.registry.tags(REPOSITORY, timeout=SOON) == ["g000001"]


async def test_a_repetition_is_the_same_difference_and_the_same_digest_unless_that_is_lost(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", b"1")

    first, again = await world.build(), await world.build()
    unchanged = await world.build(generation=2, previous=again.image)

    assert (first.image == again.image) is (Loss.SAME_BYTES not in world.losses)
    assert first.layer_digest == again.layer_digest
    assert (unchanged.unchanged, unchanged.image) == (True, again.image)


async def test_the_next_generation_has_one_layer_and_nothing_of_what_was_deleted(world: BuildWorld) -> None:
    world.capture.put(b"opt/key", b"canary")
    world.capture.put(b"opt/a", b"1")
    first = await world.build()
    world.capture.touched.clear()  # started from it
    world.capture.remove(b"opt/key")
    world.capture.put(b"opt/b", b"2")

    second = await world.build(generation=2, previous=first.image)

    assert (await world.files_of(second)).keys() == BASE_FILES | {b"opt/a", b"opt/b"}
    assert second.layers == 3
    assert first.layer_digest not in json.dumps(await world.manifest_of(second))
    assert sorted(await world.registry.tags(REPOSITORY, timeout=SOON)) == ["g000001", "g000002"]


async def test_what_was_taken_back_altogether_is_an_image_without_a_layer_of_its_own(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", b"1")
    first = await world.build()
    world.capture.remove(b"opt")

    second = await world.build(generation=2, previous=first.image)
    third = await world.build(generation=3, previous=second.image)

    assert (second.unchanged, second.layers, second.entries) == (False, 2, 0)
    assert (await world.files_of(second)).keys() == BASE_FILES
    assert (third.unchanged, third.image) == (True, second.image)


async def test_a_generation_that_the_registry_has_lost_is_built_anew(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", b"1")
    first = await world.build()
    assert first.image is not None
    await world.registry.delete(REPOSITORY, first.image.digest, timeout=SOON)

    second = await world.build(generation=2, previous=first.image)

    assert not second.unchanged
    assert (await world.files_of(second)).keys() == BASE_FILES | {b"opt/a"}


async def test_a_dry_run_counts_and_pushes_nothing(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", os.urandom(5000))

    tried = await world.build(dry_run=True)
    assert not {"upload", "push", "mount", "copy"} & set(world.registry.calls)
    with pytest.raises(NotFoundError):
        await world.registry.manifest(REPOSITORY, "g000001", timeout=SOON)
    built = await world.build()

    assert (tried.image, tried.unchanged) == (None, False)
    assert tried.layers == built.layers
    if Loss.SAME_BYTES not in world.losses:
        assert (tried.diff_id, tried.image_bytes) == (built.diff_id, built.image_bytes)
    unchanged = await world.build(generation=2, previous=built.image, dry_run=True)
    assert (unchanged.image, unchanged.unchanged) == (None, True)


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
async def test_of_an_index_the_nodes_variant_is_built_on(
    make_world: WorldMaker, registry: Registry, architecture: str
) -> None:
    images = {
        one: an_image(tar(entry(one, b"1", mtime=0)), architecture=one, docker=True) for one in ("arm64", "amd64")
    }
    for image in images.values():
        await image.push(registry, "base/sandbox")
    index = an_index(images)
    await registry.push("base/sandbox", index.digest, index, timeout=SOON)
    base = ImageReference(registry="registry.test", repository="base/sandbox", digest=index.digest)
    world = await make_world(base=base, architecture=architecture)
    world.capture.put(b"opt/a", b"1")

    built = await world.build()

    assert (await world.files_of(built)).keys() == {architecture.encode(), b"opt/a"}
    assert (await world.config_of(built))["architecture"] == architecture


async def test_blobs_that_are_not_mounted_are_copied_through(make_world: WorldMaker, builder: str) -> None:
    large = tar(entry("usr/lib/large", os.urandom(1_000_000), mtime=0))
    world = await make_world(image=an_image(LOWER, large))
    world.registry.mounts = False
    world.capture.put(b"opt/a", b"1")

    built = await world.build()

    assert world.registry.calls.count("copy") == (0 if builder == "kaniko" else 2), "kaniko brings them by itself"
    assert (await world.files_of(built)).keys() == {b"bin/sh", b"etc/passwd", b"usr/lib/large", b"opt/a"}
    world.registry.calls.clear()
    await world.build(generation=2)
    assert "copy" not in world.registry.calls, "they are there"


async def test_the_layer_of_a_worker_process_is_pushed_too(make_world: WorldMaker) -> None:
    world = await make_world(writer=WorkerLayerWriter())
    world.capture.put(b"opt/a", os.urandom(500_000))

    built = await world.build()

    assert (await world.files_of(built)).keys() == BASE_FILES | {b"opt/a"}


async def test_a_limit_ends_it_before_anything_is_pushed(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", os.urandom(5000))

    with pytest.raises(ImageTooLargeError, match="opt/a"):
        await world.build(limits=ImageLimits(raw_bytes=4000, compressed_bytes=4000))

    assert not {"upload", "push", "mount", "copy"} & set(world.registry.calls)


async def test_what_the_sandbox_or_its_capture_does_wrong_ends_it(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", b"1")
    world.capture.failure = CaptureInvalidError("no difference")
    with pytest.raises(CaptureInvalidError):
        await world.build()

    world.capture.failure = None
    with pytest.raises(UnavailableError, match="does not run"):
        await world.build(incarnation="inc-other")
    with pytest.raises(WrongStateError, match="in the registry other.test"):
        await world.build(base=ImageReference(registry="other.test", repository="base", digest=world.base.digest))
    with pytest.raises(NotFoundError):
        await world.build(base=ImageReference(registry="registry.test", repository="base", digest=f"sha256:{'0' * 64}"))
    assert not {"upload", "push", "mount", "copy"} & set(world.registry.calls)


async def test_a_layer_that_must_not_be_passed_on_is_refused(make_world: WorldMaker) -> None:
    foreign = an_image(LOWER, media_types=["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"])
    world = await make_world(image=foreign)
    world.capture.put(b"opt/a", b"1")

    with pytest.raises(ImageInvalidError, match="cannot be kept"):
        await world.build()


async def test_it_ends_with_its_time_whichever_call_does_not_return(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", b"1")
    await world.build()
    steps = world.registry.calls.copy()
    for number in sorted({steps.index(call) for call in steps}):
        world.registry.calls.clear()

        async def wait(_: str, number: int = number) -> None:
            if len(world.registry.calls) > number:
                await asyncio.sleep(60)

        world.registry.before = wait
        with pytest.raises(DeadlineError):
            await world.build(repository=f"slow/{number}", timeout=timedelta(seconds=0.5))


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
@pytest.mark.parametrize("mounts", [True, False])
async def test_ended_at_any_call_it_leaves_nothing_half_and_a_repetition_ends_in_the_same_image(
    make_world: WorldMaker, registry: Registry, builder: str, how: str, mounts: bool
) -> None:
    world = await make_world()
    world.registry.mounts = mounts
    world.capture.put(b"opt/a", os.urandom(200_000))
    expected = await world.build(repository="clean/one")
    steps = world.registry.calls.copy()
    numbers = set(range(len(steps)))
    if builder != "fake":  # where each takes longer: the first and the last of each kind
        numbers = {steps.index(call) for call in steps} | set({call: at for at, call in enumerate(steps)}.values())

    for number in sorted(numbers):
        world.registry.calls.clear()
        reached = asyncio.Event()

        async def interfere(_: str, number: int = number, reached: asyncio.Event = reached) -> None:
            if len(world.registry.calls) == number + 1:
                reached.set()
                if how == "fails":
                    raise UnavailableError("the registry is down")
                await asyncio.sleep(60)

        world.registry.before = interfere
        building = asyncio.create_task(world.build(repository=f"broken/{number}"))
        if how == "fails":
            with pytest.raises(UnavailableError, match="is down"):
                await building
        else:
            await reached.wait()
            building.cancel()
            with pytest.raises(asyncio.CancelledError):
                await building
        world.registry.before = None
        for tag in await world.registry.tags(f"broken/{number}", timeout=SOON):
            manifest = json.loads((await registry.manifest(f"broken/{number}", tag, timeout=SOON)).content)
            for blob in (manifest["config"], *manifest["layers"]):
                assert await registry.has_blob(f"broken/{number}", blob["digest"], timeout=SOON)

        again = await world.build(repository=f"broken/{number}")
        assert again.image is not None
        assert expected.image is not None
        assert (await world.files_of(again)).keys() == BASE_FILES | {b"opt/a"}
        if Loss.SAME_BYTES not in world.losses:
            assert again.image.digest == expected.image.digest


async def test_two_at_once_do_not_meet(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", os.urandom(200_000))

    async def build(generation: int) -> None:
        await world.builder.build(world.order(generation=generation), timeout=SOON, progress=lambda _: None)

    await asyncio.gather(*(build(number) for number in range(1, 5)))

    assert sorted(await world.registry.tags(REPOSITORY, timeout=SOON)) == [f"g{number:06}" for number in range(1, 5)]
    assert list(world.spool.directory.iterdir()) == []


async def test_a_cache_that_lets_go_of_the_base_in_between_is_filled_again(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", b"1")
    file = (await world.baselines.baseline(world.base, timeout=SOON)).file
    original = world.baselines.baseline
    asked = 0

    async def vanishing(base: ImageReference, *, timeout: timedelta) -> object:
        nonlocal asked
        asked += 1
        made = await original(base, timeout=timeout)
        if asked == 1:
            file.unlink()
        return made

    world.baselines.baseline = vanishing  # type: ignore[method-assign, assignment]  # another process's cache would do so

    built = await world.build()

    world.baselines.baseline = original  # type: ignore[method-assign]
    assert asked == 2
    assert (await world.files_of(built)).keys() == BASE_FILES | {b"opt/a"}


async def test_where_there_is_no_room_nothing_begins_and_what_runs_is_given_up(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", b"1")
    object.__setattr__(world.spool, "least_free_bytes", 1 << 60)
    with pytest.raises(SpoolFullError, match="MiB are needed"):
        await world.build()
    assert world.capture.captures == 0

    object.__setattr__(world.spool, "least_free_bytes", 0)

    async def fill(call: str) -> None:
        if call == "upload":
            object.__setattr__(world.spool, "size_bytes", -1)
            await asyncio.sleep(60)

    world.registry.before = fill
    with pytest.raises(SpoolFullError):
        await world.build()


async def test_what_a_killed_process_left_goes_with_the_next_build(world: BuildWorld) -> None:
    left = world.spool.directory / "build-left"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / "layer.tar.zst").write_bytes(b"x" * 1000)
    fresh, old = world.spool.directory / "new-fresh", world.spool.directory / "new-old"
    for path in (fresh, old):
        path.mkdir()
    os.utime(old, (0, 0))
    world.capture.put(b"opt/a", b"1")

    await world.builder.build(world.order(), timeout=SOON, progress=lambda _: None)

    assert list(world.spool.directory.iterdir()) == [fresh]
    await eventually(lambda: not left.exists())
