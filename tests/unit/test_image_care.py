"""What becomes of kept images: nothing goes that anybody needs, and what was begun is ended by whoever comes next."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta

import pytest

from sandboxd.images.registry import OCI_MANIFEST, Manifest
from sandboxd.model.backup import BackupSet, BackupSetId
from sandboxd.model.backup_errors import BackupStorageFullError
from sandboxd.model.errors import UnavailableError
from sandboxd.model.failpoints import FailpointError, arming
from sandboxd.model.image import tag_of
from sandboxd.model.image_errors import ImageUsesUnknownError, ManyImagesLostError, RegistryKeepsError
from sandboxd.model.image_keeping import Stay, digest_of
from sandboxd.model.sandbox import Sandbox
from tests.fakes.images import REGISTRY
from tests.fakes.registry import FakeRegistry
from tests.image_care_world import DAY, REPOSITORY, ImageCareWorld
from tests.manager_world import SOON, a_request

STEPS = ["reap.after_mark", "reap.after_delete", "reap.after_row"]


@pytest.fixture
def world() -> ImageCareWorld:
    return ImageCareWorld()


async def given_orphan(world: ImageCareWorld, *tags: str, content: bytes = b"{}") -> str:
    manifest = Manifest(media_type=OCI_MANIFEST, content=content)
    for tag in tags:
        await world.registry.push(REPOSITORY, tag, manifest, timeout=SOON)
    return manifest.digest


async def test_what_policy_keeps_no_more_goes_with_its_tag(world: ImageCareWorld) -> None:
    await world.given_images(4)

    report = await world.care().run()

    assert (report.reaped, report.findings.kept, report.failed) == (2, 2, 0)
    assert world.statuses() == ["deleted", "deleted", "superseded", "active"]
    assert world.tags() == {"g000003", "g000004", "latest"}
    assert world.count("images_reaped_total") == 2
    assert world.count("images_reaped_bytes_total") == 2 * (len("with package 1") // 2)
    assert (await world.care().run()).reaped == 0


async def test_a_dry_run_tells_what_goes_and_why_the_others_stay_and_does_nothing(world: ImageCareWorld) -> None:
    _, images = await world.given_images(4)
    world.uses.names = {digest_of(images[0]): "Pod acme/sbx-1-0"}

    report = await world.care().run(dry_run=True)

    assert [one.generation.tag for one in report.findings.going] == ["g000002"]
    assert [(one.generation.tag, one.stay, one.by) for one in report.findings.staying] == [
        ("g000001", Stay.NAMED, "Pod acme/sbx-1-0"),
        ("g000003", Stay.PREVIOUS, ""),
        ("g000004", Stay.ACTIVE, ""),
    ]
    assert world.statuses() == ["superseded", "superseded", "superseded", "active"]
    assert len(world.tags()) == 5
    assert world.count("image_care_passes_total", outcome="done") == 0


async def test_a_pass_removes_a_bounded_number_and_says_how_many_wait(world: ImageCareWorld) -> None:
    await world.given_images(5)

    report = await world.care(batch=2).run()

    assert (report.reaped, report.findings.waiting) == (2, 1)
    assert (await world.care(batch=2).run()).reaped == 1


async def test_a_place_that_cannot_be_asked_keeps_everything(world: ImageCareWorld) -> None:
    await world.given_images(4)
    world.uses.error = UnavailableError("The cluster's API does not answer.")

    with pytest.raises(ImageUsesUnknownError, match="the cluster names cannot be told now"):
        await world.care().run()

    assert world.statuses() == ["superseded", "superseded", "superseded", "active"]
    assert world.count("image_care_passes_total", outcome="uses_unknown") == 1


async def test_what_is_named_after_it_was_marked_is_not_deleted_until_nobody_does(world: ImageCareWorld) -> None:
    _, images = await world.given_images(3)
    world.uses.later = {digest_of(images[0]): "Pod acme/late"}

    first = await world.care().run()
    second = await world.care().run(dry_run=True)
    world.uses.later = {}
    third = await world.care().run()

    assert (first.reaped, third.reaped) == (0, 1)
    assert [(one.generation.tag, one.stay) for one in second.findings.staying][:1] == [("g000001", Stay.NAMED)]
    assert world.statuses()[0] == "deleted"


async def test_the_grace_begins_when_the_last_pod_is_gone(world: ImageCareWorld) -> None:
    _, images = await world.given_images(3)
    world.uses.names = {digest_of(images[0]): "Pod acme/sbx-1-0"}
    await world.care().run()
    world.uses.names = {}
    world.clock.advance(DAY - 1)

    early = await world.care().run()
    world.clock.advance(2)
    late = await world.care().run()

    assert (early.reaped, late.reaped) == (0, 1)
    assert (REPOSITORY, digest_of(images[0])) not in world.sightings.used


async def test_a_digest_under_two_tags_stays_while_one_of_them_is_needed(world: ImageCareWorld) -> None:
    sandbox = await world.given_active()
    first = await world.committed(sandbox, "one")
    for root in ("two", "three"):
        await world.committed(sandbox, root)
    again = await world.committed(sandbox, "one")
    world.clock.advance(2 * DAY)

    await world.care().run()

    assert digest_of(again) == digest_of(first)
    assert world.statuses() == ["superseded", "deleted", "superseded", "active"]
    assert {"g000001", "g000004"} <= world.tags()


async def given_backup(world: ImageCareWorld, sandbox: Sandbox, image: str) -> BackupSet:
    now = world.clock.now()
    backup = BackupSet(
        id=BackupSetId(world.ids.new("bks")),
        sandbox=sandbox.id,
        client=sandbox.client,
        freelancer=sandbox.freelancer,
        take_time=now,
        image=image,
        create_time=now,
        update_time=now,
    )
    async with world.units.begin() as work:
        await work.backup_sets.begin(backup)
        await work.commit()
    return backup


async def test_what_a_backup_set_names_stays_until_that_is_given_up(world: ImageCareWorld) -> None:
    sandbox, images = await world.given_images(3)
    backup = await given_backup(world, sandbox, images[0].reference)

    first = await world.care().run()
    async with world.units.begin() as work:
        await work.backup_sets.save(backup.fail(BackupStorageFullError("x"), at=world.clock.now()))
        await work.commit()
    world.clock.advance(DAY)
    second = await world.care().run()

    named = [one for one in first.findings.staying if one.stay is Stay.NAMED]
    assert [(one.generation.tag, one.by) for one in named] == [("g000001", f"backup {backup.id}")]
    assert (first.reaped, second.reaped) == (0, 1)


async def test_an_image_that_a_backup_set_names_after_it_was_marked_is_not_deleted(world: ImageCareWorld) -> None:
    sandbox, images = await world.given_images(3)
    with arming("reap.after_mark=error"), pytest.raises(FailpointError):
        await world.care().run()
    asked = world.uses.named

    async def late(*, timeout: timedelta) -> Mapping[str, str]:
        if world.uses.asked == 1:
            await given_backup(world, sandbox, images[0].reference)
        return await asked(timeout=timeout)

    world.uses.asked = 0
    world.uses.named = late  # type: ignore[method-assign]
    report = await world.care().run()

    assert report.reaped == 0
    assert digest_of(images[0]) in world.registry.manifests[REPOSITORY]


async def test_an_orphan_that_a_backup_set_names_stays(world: ImageCareWorld) -> None:
    sandbox, _ = await world.given_images(1)
    orphan = await given_orphan(world, "g000007")
    backup = await given_backup(world, sandbox, f"{REGISTRY}/{REPOSITORY}@{orphan}")
    await world.care().run()
    world.clock.advance(2 * DAY)

    report = await world.care().run()

    assert [(one.stay, one.by) for one in report.findings.orphans] == [(Stay.NAMED, f"backup {backup.id}")]


@pytest.mark.parametrize("step", STEPS)
async def test_a_replica_that_dies_at_any_step_is_followed_by_one_that_ends_it(
    world: ImageCareWorld, step: str
) -> None:
    await world.given_images(3)

    with arming(f"{step}=error"), pytest.raises(FailpointError):
        await world.care().run()
    await world.care().run()

    assert world.statuses() == ["deleted", "superseded", "active"]
    assert world.tags() == {"g000002", "g000003", "latest"}


async def test_two_at_once_do_no_harm(world: ImageCareWorld) -> None:
    await world.given_images(6)

    reports = await asyncio.gather(*(world.care().run() for _ in range(3)))

    assert sum(one.reaped for one in reports) == 4
    assert world.statuses() == ["deleted"] * 4 + ["superseded", "active"]
    assert world.tags() == {"g000005", "g000006", "latest"}


async def test_a_rollback_is_faster_or_is_refused_and_what_is_active_is_there(world: ImageCareWorld) -> None:
    sandbox, images = await world.given_images(3)

    rollback = world.manager.images.rollback(a_request(), sandbox.id, images[0].number)
    await asyncio.gather(world.care().run(), rollback, return_exceptions=True)

    active = world.row(sandbox.id).image
    assert active is not None
    assert active.reference.rpartition("@")[2] in world.registry.manifests[REPOSITORY]


async def test_no_image_goes_while_a_commit_may_come_to_its_digest(world: ImageCareWorld) -> None:
    sandbox, images = await world.given_images(3)
    world.builder.roots[sandbox.id] = "with package 1"
    world.builder.hanging = asyncio.Event()
    commit = asyncio.create_task(world.manager.images.commit(a_request(), sandbox.id, timeout=SOON))
    await asyncio.sleep(0.05)

    report = await world.care().run()
    world.builder.hanging.set()
    made = (await commit).generation
    await world.care().run()

    assert report.reaped == 0
    assert digest_of(made) == digest_of(images[0])
    assert digest_of(made) in world.registry.manifests[REPOSITORY]


async def test_a_registry_that_deletes_nothing_is_told_and_tried_again(world: ImageCareWorld) -> None:
    await world.given_images(4)
    real = FakeRegistry.delete

    async def refuse(self: FakeRegistry, repository: str, digest: str, *, timeout: object) -> None:
        raise RegistryKeepsError("The registry deletes nothing. Switch its storage.delete.enabled on.")

    world.registry.delete = refuse.__get__(world.registry)  # type: ignore[method-assign]
    with pytest.raises(RegistryKeepsError, match=r"storage\.delete\.enabled"):
        await world.care().run()
    assert world.count("image_care_passes_total", outcome="registry_refuses") == 1

    world.registry.delete = real.__get__(world.registry)  # type: ignore[method-assign]
    assert (await world.care().run()).reaped == 2


async def test_a_crashed_push_is_removed_after_the_grace_and_others_tags_are_not_ours(world: ImageCareWorld) -> None:
    await world.given_images(1)
    orphan = await given_orphan(world, "g000007", "g000008", content=b"1")
    await given_orphan(world, "by-hand", content=b"2")

    first = await world.care().run()
    world.clock.advance(DAY)
    second = await world.care().run()

    assert [(one.digest, one.tags, one.stay) for one in first.findings.orphans] == [
        (orphan, ["g000007", "g000008"], Stay.GRACE)
    ]
    assert (first.orphans, second.orphans) == (0, 1)
    assert world.tags() == {"g000001", "latest", "by-hand"}
    assert world.count("image_orphans_removed_total") == 1
    assert world.sightings.orphans == {}


async def test_an_orphan_that_a_pod_runs_from_stays(world: ImageCareWorld) -> None:
    await world.given_images(1)
    orphan = await given_orphan(world, "g000007")
    world.uses.names = {orphan: "Pod acme/old"}
    await world.care().run()
    world.clock.advance(2 * DAY)

    report = await world.care().run()

    assert [(one.stay, one.by) for one in report.findings.orphans] == [(Stay.NAMED, "Pod acme/old")]
    assert "g000007" in world.tags()


async def test_what_was_erased_leaves_the_registry_with_its_latest(world: ImageCareWorld) -> None:
    sandbox, _ = await world.given_images(2)
    world.units.rows.generations.clear()
    world.units.rows.sandboxes.pop(sandbox.id)
    await world.care().run()
    world.clock.advance(DAY)

    report = await world.care().run()

    assert report.orphans == 2
    assert world.tags() == set()


async def test_a_second_tag_of_a_kept_image_is_no_orphan(world: ImageCareWorld) -> None:
    _, (image,) = await world.given_images(1)
    await world.registry.push(
        REPOSITORY, "g000009", world.registry.manifests[REPOSITORY][digest_of(image)], timeout=SOON
    )
    await world.care().run()
    world.clock.advance(2 * DAY)

    report = await world.care().run()

    assert report.findings.orphans == []
    assert "g000001" in world.tags()


async def test_a_lost_image_is_replaced_by_the_one_before(world: ImageCareWorld) -> None:
    sandbox, images = await world.given_images(2)
    world.lose(images[1])

    report = await world.care().run()
    assert world.core.commits is not None
    await world.core.commits.telling.tell_untold()

    assert report.lost == 1
    assert world.statuses() == ["active", "failed"]
    row = world.row(sandbox.id)
    assert (row.image, row.state_reason) == (images[0].image, "Image g000002 is lost; the next start takes g000001.")
    assert world.backend.next_images[sandbox.id] == images[0].reference
    lost = world.units.rows.generations[images[1].id]
    assert lost.failure is not None
    assert lost.failure.reason == "IMAGE_LOST"
    assert world.count("images_lost_total", target="previous") == 1


async def test_without_one_before_the_next_start_takes_the_base(world: ImageCareWorld) -> None:
    sandbox, (image,) = await world.given_images(1)
    world.lose(image)

    await world.care().run()

    assert world.row(sandbox.id).image is None
    assert world.backend.next_images[sandbox.id] == ""
    assert world.count("images_lost_total", target="base") == 1


async def test_of_two_lost_ones_none_becomes_active(world: ImageCareWorld) -> None:
    sandbox, images = await world.given_images(2)
    for image in images:
        world.lose(image)

    await world.care().run()

    assert world.statuses() == ["failed", "failed"]
    assert world.row(sandbox.id).image is None


@pytest.mark.parametrize("step", ["reap.after_base", "reap.after_lost"])
async def test_a_loss_that_breaks_off_is_ended_by_the_next_pass(world: ImageCareWorld, step: str) -> None:
    sandbox, (image,) = await world.given_images(1)
    world.lose(image)

    with arming(f"{step}=error"), pytest.raises(FailpointError):
        await world.care().run()
    await world.care().run()

    assert world.statuses() == ["failed"]
    assert (world.row(sandbox.id).image, world.backend.next_images[sandbox.id]) == (None, "")


async def test_a_commit_that_is_faster_than_a_loss_is_what_starts(world: ImageCareWorld) -> None:
    sandbox, (image,) = await world.given_images(1)
    world.lose(image)
    real = world.running.set_image

    async def slow(*args: object, **more: object) -> None:
        await world.committed(sandbox, "newer")
        world.running.set_image = real  # type: ignore[method-assign]
        await real(*args, **more)  # type: ignore[arg-type]

    world.running.set_image = slow  # type: ignore[method-assign]
    world.builder.roots[sandbox.id] = "newer"
    await world.care().run()
    assert world.core.commits is not None
    await world.core.commits.telling.tell_untold()

    newer = world.row(sandbox.id).image
    assert newer is not None
    assert newer.number == 2
    assert world.backend.next_images[sandbox.id] == newer.reference


async def test_a_registry_that_misses_most_images_is_not_believed(world: ImageCareWorld) -> None:
    await world.given_images(3)
    world.policy = type(world.policy)(previous=5)
    world.registry.manifests[REPOSITORY].clear()

    with pytest.raises(ManyImagesLostError, match="misses 3 of 3 images"):
        await world.care().run()

    assert world.statuses() == ["superseded", "superseded", "active"]
    assert world.count("image_care_passes_total", outcome="images_missing") == 1


async def test_an_image_whose_tag_is_gone_gets_it_back(world: ImageCareWorld) -> None:
    _, images = await world.given_images(2)
    for image in images:
        del world.registry.manifests[REPOSITORY][tag_of(image.number)]

    report = await world.care().run()

    assert report.retagged == 2
    assert world.tags() == {"g000001", "g000002", "latest"}
