"""The same promises of the builder by kaniko, and what it declares to lose: another digest each time, Docker's types.

Here with a fake of kaniko; the real one has its own tests, in tests/integration/test_kaniko.py and on a cluster.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.images.kaniko import KanikoImageBuilder
from sandboxd.images.registry import DOCKER_MANIFEST, Registry
from sandboxd.model.errors import DeadlineError, NotFoundError, UnavailableError
from sandboxd.model.image_errors import ImageInvalidError
from tests.build_world import LOWER, REPOSITORY, UPPER, BuildWorld
from tests.contract.test_image_builder import (
    BASE_FILES,
    test_a_cache_that_lets_go_of_the_base_in_between_is_filled_again,
    test_a_generation_that_the_registry_has_lost_is_built_anew,
    test_a_limit_ends_it_before_anything_is_pushed,
    test_nothing_changed_is_the_base_and_nothing_is_pushed,
    test_nothing_changed_since_a_generation_is_that_generation,
    test_the_next_generation_has_one_layer_and_nothing_of_what_was_deleted,
    test_two_at_once_do_not_meet,
    test_what_a_killed_process_left_goes_with_the_next_build,
    test_what_is_built_is_the_base_with_one_layer,
    test_what_the_sandbox_or_its_capture_does_wrong_ends_it,
    test_what_was_taken_back_altogether_is_an_image_without_a_layer_of_its_own,
    test_where_there_is_no_room_nothing_begins_and_what_runs_is_given_up,
)
from tests.fakes.kaniko import FakeKanikoBuilds
from tests.fakes.registry import FakeRegistry
from tests.oci_images import SOON, an_image

__all__ = [
    "test_a_cache_that_lets_go_of_the_base_in_between_is_filled_again",
    "test_a_generation_that_the_registry_has_lost_is_built_anew",
    "test_a_limit_ends_it_before_anything_is_pushed",
    "test_nothing_changed_is_the_base_and_nothing_is_pushed",
    "test_nothing_changed_since_a_generation_is_that_generation",
    "test_the_next_generation_has_one_layer_and_nothing_of_what_was_deleted",
    "test_two_at_once_do_not_meet",
    "test_what_a_killed_process_left_goes_with_the_next_build",
    "test_what_is_built_is_the_base_with_one_layer",
    "test_what_the_sandbox_or_its_capture_does_wrong_ends_it",
    "test_what_was_taken_back_altogether_is_an_image_without_a_layer_of_its_own",
    "test_where_there_is_no_room_nothing_begins_and_what_runs_is_given_up",
]


@dataclass(kw_only=True)
class Handed:
    """What is left of hand-overs."""

    world: BuildWorld
    builds: FakeKanikoBuilds

    async def left(self) -> list[str]:
        found = []
        for run in self.builds.runs:
            try:
                await self.world.registry.inner.manifest(run.repository, run.handover.digest, timeout=SOON)
            except NotFoundError:
                continue
            found.append(run.handover.digest)
        return found


@pytest.fixture
async def registry() -> Registry:
    return FakeRegistry()


@pytest.fixture
async def builds(registry: Registry) -> FakeKanikoBuilds:
    return FakeKanikoBuilds(registry=registry)


@pytest.fixture
async def world(registry: Registry, builds: FakeKanikoBuilds, tmp_path: Path) -> AsyncIterator[BuildWorld]:
    world = await BuildWorld.make(registry, tmp_path, builds=builds)
    assert isinstance(world.builder, KanikoImageBuilder)
    yield world
    assert await Handed(world=world, builds=builds).left() == []


async def test_what_it_hands_over_is_named_by_digest_and_says_what_to_do(
    world: BuildWorld, builds: FakeKanikoBuilds
) -> None:
    world.capture.put(b"opt/a", b"1")

    built = await world.build()

    (run,) = builds.runs
    assert str(run.base) == f"builds.test/base/sandbox@{world.base.digest}"
    assert run.handover.registry == "registry.test"
    assert (run.repository, run.tag) == (REPOSITORY, "g000001")
    assert run.raw_bytes == built.raw_bytes
    assert built.seconds["build"] <= built.seconds["push"]


async def test_its_configuration_is_the_bases_with_labels_that_name_our_own_layer(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", b"1")
    base = an_image(LOWER, UPPER).config
    tried = await world.build(dry_run=True)

    built = await world.build()

    config, manifest = await world.config_of(built), await world.manifest_of(built)
    assert config["rootfs"]["diff_ids"] == [*base["rootfs"]["diff_ids"], built.diff_id]
    assert config["config"]["Env"] == base["config"]["Env"]
    assert config["config"]["Labels"]["dev.sandboxd.layer-diff-id"] == tried.diff_id != built.diff_id
    assert config["config"]["Labels"]["dev.sandboxd.generation"] == "1"
    assert manifest["layers"][-1]["digest"] == built.layer_digest
    assert manifest["layers"][-1]["size"] == built.compressed_bytes


async def test_a_repetition_is_another_digest_of_the_same_difference(world: BuildWorld) -> None:
    world.capture.put(b"opt/a", b"1")

    first, again = await world.build(), await world.build()
    unchanged = await world.build(generation=2, previous=again.image)

    assert first.image is not None
    assert again.image is not None
    assert first.image.digest != again.image.digest
    assert first.layer_digest == again.layer_digest
    assert (unchanged.unchanged, unchanged.image) == (True, again.image)


async def test_a_base_with_dockers_media_types_keeps_them(
    registry: Registry, builds: FakeKanikoBuilds, tmp_path: Path
) -> None:
    world = await BuildWorld.make(registry, tmp_path, image=an_image(LOWER, UPPER, docker=True), builds=builds)
    world.capture.put(b"opt/a", b"1")

    built = await world.build()

    assert (await world.manifest_of(built))["mediaType"] == DOCKER_MANIFEST
    assert (await world.files_of(built)).keys() == BASE_FILES | {b"opt/a"}


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        ({"wrong": {"Env": ["LD_PRELOAD=/opt/x"]}}, "configuration"),
        ({"wrong": {"User": "root"}}, "configuration"),
        ({"wrong": {"Labels": {"dev.sandboxd.client": "other"}}}, "labels"),
        ({"forgets": {"opt/a"}}, "opt/a"),
        ({"names": f"sha256:{'d' * 64}"}, "tag"),
        ({"failure": UnavailableError("no room")}, "no room"),
    ],
    ids=["environment", "user", "labels", "a path less", "another digest", "failed"],
)
async def test_what_is_not_the_base_with_the_difference_is_not_taken(
    world: BuildWorld, builds: FakeKanikoBuilds, spoiled: dict[str, object], words: str
) -> None:
    world.capture.put(b"opt/a", b"1")
    world.capture.put(b"opt/b", b"1")
    for name, value in spoiled.items():
        setattr(builds, name, value)

    with pytest.raises(UnavailableError, match=words):
        await world.build()


async def test_it_ends_with_its_time_when_the_build_does_not(world: BuildWorld, builds: FakeKanikoBuilds) -> None:
    world.capture.put(b"opt/a", b"1")
    builds.hangs = True

    with pytest.raises(DeadlineError):
        await world.build(timeout=timedelta(seconds=1))
    assert len(builds.runs) == 1


async def test_a_directory_of_kanikos_own_is_left_out(world: BuildWorld) -> None:
    world.capture.put(b"kaniko/mine", b"1")
    world.capture.put(b"opt/a", b"1")

    built = await world.build()

    assert (await world.files_of(built)).keys() == BASE_FILES | {b"opt/a"}


async def test_a_user_that_no_dockerfile_can_say_is_refused(
    registry: Registry, builds: FakeKanikoBuilds, tmp_path: Path
) -> None:
    image = an_image(LOWER, UPPER, user="root\nRUN evil")
    world = await BuildWorld.make(registry, tmp_path, image=image, builds=builds)
    world.capture.put(b"opt/a", b"1")

    with pytest.raises(ImageInvalidError, match="no Dockerfile can say"):
        await world.build()
    assert builds.runs == []


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_ended_at_any_call_it_leaves_no_hand_over_and_can_be_repeated(world: BuildWorld, how: str) -> None:
    world.capture.put(b"opt/a", os.urandom(10_000))
    await world.build(repository="clean/one")
    steps = world.registry.calls.copy()

    last = {call: number for number, call in enumerate(steps)}
    for number in sorted({steps.index(call) for call in steps} | set(last.values())):
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

        again = await world.build(repository=f"broken/{number}")
        assert (await world.files_of(again)).keys() == BASE_FILES | {b"opt/a"}
