"""What the builder by kaniko promises beside what every builder does (test_image_builder.py), with a fake of kaniko."""

from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.images.registry import Registry
from sandboxd.model.errors import DeadlineError, UnavailableError
from sandboxd.model.image_errors import ImageInvalidError
from tests.build_world import LOWER, REPOSITORY, UPPER, BuildWorld
from tests.contract.test_image_builder import BASE_FILES
from tests.fakes.kaniko import FakeKanikoBuilds
from tests.fakes.registry import FakeRegistry
from tests.oci_images import an_image


@pytest.fixture
async def registry() -> Registry:
    return FakeRegistry()


@pytest.fixture
async def builds(registry: Registry) -> FakeKanikoBuilds:
    return FakeKanikoBuilds(registry=registry)


@pytest.fixture
async def world(registry: Registry, builds: FakeKanikoBuilds, tmp_path: Path) -> BuildWorld:
    return await BuildWorld.make(registry, tmp_path, builds=builds)


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
