"""Lists of packages come to images beside the commits, are tried again until they have, and go with the images."""

from __future__ import annotations

import json

import pytest

from sandboxd.images.referrers import subject_of_tag, tag_of_subject
from sandboxd.manager.image_erasing import ImageErasing
from sandboxd.manager.sbom_attaching import HELD, SbomAttaching
from sandboxd.model.errors import SandboxNotFoundError, UnavailableError
from sandboxd.model.image import Generation, GenerationStatus
from sandboxd.model.image_keeping import digest_of
from sandboxd.model.image_sbom import FIRST_WAIT, LONGEST_WAIT, SbomPendingError, SbomUnknownError
from sandboxd.model.package_history import KnownPackage, PackageRecord
from sandboxd.model.packages import Package, PackageKey, PackageManager, PackagePlace
from sandboxd.model.sandbox import Sandbox
from tests.image_care_world import DAY, REPOSITORY, ImageCareWorld
from tests.manager_world import SOON, a_caller


@pytest.fixture
def world() -> ImageCareWorld:
    return ImageCareWorld()


def attaching(world: ImageCareWorld) -> SbomAttaching:
    assert world.core.commits is not None
    return world.core.commits.sboms


def know(world: ImageCareWorld, sandbox: Sandbox, *names: str, looked: bool = True) -> None:
    """The service knows that these are installed."""
    incarnation = world.row(sandbox.id).incarnation
    assert incarnation is not None
    packages = [
        Package(
            key=PackageKey(manager=PackageManager.PIP, name=name, directory="/usr/local/lib/python3.13"),
            version="1.0",
            place=PackagePlace.HOME if name == "at-home" else PackagePlace.ROOT,
        )
        for name in names
    ]
    world.units.rows.package_records[sandbox.id] = PackageRecord(
        sandbox=sandbox.id,
        incarnation=incarnation,
        known={one.key: KnownPackage(package=one) for one in packages},
        looked=looked,
        complete=True,
    )


async def document_of(world: ImageCareWorld, sandbox: Sandbox, image: Generation) -> bytes:
    _, content = await world.manager.images.sbom(a_caller(), sandbox.id, image.number)
    return b"".join([piece async for piece in content])


def names_in(document: bytes) -> list[str]:
    return [one["name"] for one in json.loads(document)["components"]]


async def test_what_was_installed_at_the_capture_is_listed_whatever_was_installed_since(world: ImageCareWorld) -> None:
    sandbox = await world.given_active()
    know(world, sandbox, "numpy", "at-home")
    image = await world.committed(sandbox, "with numpy")
    know(world, sandbox, "numpy", "scipy")

    assert await attaching(world).attach_due() == 1

    assert names_in(await document_of(world, sandbox, image)) == ["numpy"]
    (manifest,) = await world.registry.attached(REPOSITORY, digest_of(image), timeout=SOON)
    said = json.loads(manifest.content)
    assert said["subject"]["digest"] == digest_of(image)
    assert said["artifactType"] == said["layers"][0]["mediaType"] == "application/vnd.cyclonedx+json"
    assert await attaching(world).attach_due() == 0, "once is enough"


async def test_the_same_packages_in_two_images_are_one_document(world: ImageCareWorld) -> None:
    sandbox = await world.given_active()
    know(world, sandbox, "numpy")
    images = [await world.committed(sandbox, root) for root in ("one", "two")]

    await attaching(world).attach_due()

    documents = [await document_of(world, sandbox, image) for image in images]
    assert documents[0] == documents[1]


async def test_a_registry_that_takes_no_list_fails_no_commit_and_is_asked_again_ever_later(
    world: ImageCareWorld,
) -> None:
    sandbox = await world.given_active()
    know(world, sandbox, "numpy")
    world.registry.error = UnavailableError("The registry answers 503.")

    image = await world.committed(sandbox, "with numpy")

    assert world.row(sandbox.id).image is not None
    assert image.status is GenerationStatus.ACTIVE
    waits = []
    for _ in range(12):
        assert await attaching(world).attach_due() == 1
        row = world.units.rows.sboms[image.id]
        waits.append(row.next_time - world.clock.now())
        assert await attaching(world).attach_due() == 0, "not before its time"
        world.clock.advance(waits[-1].total_seconds())
    assert waits[0] == FIRST_WAIT
    assert waits[1] == 2 * FIRST_WAIT
    assert waits[-1] == LONGEST_WAIT
    with pytest.raises(SbomPendingError, match="503"):
        await world.manager.images.sbom(a_caller(), sandbox.id, image.number)

    world.registry.error = None
    await attaching(world).attach_due()

    assert names_in(await document_of(world, sandbox, image)) == ["numpy"]


async def test_what_a_killed_replica_had_taken_is_taken_again(world: ImageCareWorld) -> None:
    sandbox = await world.given_active()
    know(world, sandbox, "numpy")
    image = await world.committed(sandbox, "with numpy")
    async with world.units.begin() as work:
        await work.sboms.claim(at=world.clock.now(), until=world.clock.now() + HELD, limit=1)
        await work.commit()

    assert await attaching(world).attach_due() == 0
    world.clock.advance(HELD.total_seconds())
    assert await attaching(world).attach_due() == 1

    assert names_in(await document_of(world, sandbox, image)) == ["numpy"]


@pytest.mark.parametrize("looked", [False, None])
async def test_where_nobody_has_looked_there_is_no_list_and_the_answer_says_so(
    world: ImageCareWorld, looked: bool | None
) -> None:
    sandbox = await world.given_active()
    if looked is not None:
        know(world, sandbox, "numpy", looked=looked)
    image = await world.committed(sandbox, "with numpy")

    assert await attaching(world).attach_due() == 0

    with pytest.raises(SbomUnknownError, match="were not known"):
        await world.manager.images.sbom(a_caller(), sandbox.id, image.number)


async def test_a_commit_that_finds_nothing_new_leaves_no_list(world: ImageCareWorld) -> None:
    sandbox = await world.given_active()
    know(world, sandbox, "numpy")
    await world.committed(sandbox, "as the base")

    assert world.units.rows.sboms == {}


async def given_attached(world: ImageCareWorld, number: int) -> tuple[Sandbox, list[Generation]]:
    sandbox = await world.given_active()
    know(world, sandbox, "numpy")
    images = [await world.committed(sandbox, f"with package {n}") for n in range(1, number + 1)]
    await attaching(world).attach_due()
    world.clock.advance(2 * DAY)
    return sandbox, images


async def test_the_care_takes_no_list_for_an_orphan_and_removes_it_with_its_image(world: ImageCareWorld) -> None:
    _, images = await given_attached(world, 3)
    lists = {tag_of_subject(digest_of(image), "sbom") for image in images}
    assert lists <= world.tags()

    report = await world.care().run()

    assert (report.reaped, report.orphans, report.failed, report.findings.left_over) == (1, 0, 0, [])
    assert tag_of_subject(digest_of(images[0]), "sbom") not in world.tags()
    assert lists - {tag_of_subject(digest_of(images[0]), "sbom")} <= world.tags()
    assert await world.registry.attached(REPOSITORY, digest_of(images[0]), timeout=SOON) == []


async def test_what_is_attached_to_an_image_that_is_gone_goes_too(world: ImageCareWorld) -> None:
    _, images = await given_attached(world, 1)
    await world.registry.delete(REPOSITORY, digest_of(images[0]), timeout=SOON)
    world.units.rows.generations[images[0].id] = images[0].enter(GenerationStatus.FAILED, at=world.clock.now())
    assert any(subject_of_tag(tag) for tag in world.tags())

    dry = await world.care().run(dry_run=True)
    assert any(subject_of_tag(tag) for tag in world.tags())
    world.units.rows.generations.clear()
    await world.care().run()

    assert dry.findings.left_over == [], "a row still names it"
    assert not any(subject_of_tag(tag) for tag in world.tags())


async def test_a_list_that_comes_when_its_image_is_being_removed_is_taken_back(world: ImageCareWorld) -> None:
    sandbox = await world.given_active()
    know(world, sandbox, "numpy")
    image = await world.committed(sandbox, "with numpy")

    def remove() -> None:
        going = image.enter(GenerationStatus.SUPERSEDED, at=world.clock.now())
        world.units.rows.generations[image.id] = going.enter(GenerationStatus.DELETING, at=world.clock.now())

    world.registry.attaching = remove
    await attaching(world).attach_due()

    assert await world.registry.attached(REPOSITORY, digest_of(image), timeout=SOON) == []


async def test_an_erasure_leaves_nothing_that_was_attached_and_counts_images_alone(world: ImageCareWorld) -> None:
    sandbox, images = await given_attached(world, 2)
    assert world.core.tools.images is not None

    count = await ImageErasing(images=world.core.tools.images).erase(sandbox.client, sandbox.freelancer)

    assert count == len(images)
    assert world.tags() == set()
    assert {one.media_type for one in world.registry.manifests[REPOSITORY].values()} == set()


async def test_the_list_of_another_clients_image_is_not_told(world: ImageCareWorld) -> None:
    sandbox, images = await given_attached(world, 1)

    with pytest.raises(SandboxNotFoundError):
        await world.manager.images.sbom(a_caller(client="other"), sandbox.id, images[0].number)
