"""Commit and ImageService over a real gRPC server: what is answered, what is told on the way, what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.model.image_errors import ImageTooLargeError
from sandboxd.model.package_history import KnownPackage, PackageRecord
from sandboxd.model.packages import Package, PackageKey, PackageManager, PackagePlace
from sandboxd.model.sandbox import Sandbox
from sandboxd.v1 import image_pb2 as pb
from sandboxd.v1 import image_pb2_grpc, package_pb2, sandbox_pb2
from tests.fakes.images import BASE
from tests.integration.api_world import World, a_world, refused
from tests.manager_world import SOON, a_request
from tests.unit.test_replay import a_package

_numbers = count(1)
S = grpc.StatusCode


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


def rid() -> str:
    return f"image-request-{next(_numbers)}"


def images(world: World) -> Any:
    return image_pb2_grpc.ImageServiceStub(world.channel)


async def given_sandbox(world: World, root: str = "with ripgrep") -> Sandbox:
    sandbox = await world.core.given_active()
    world.core.builder.roots[sandbox.id] = root
    return sandbox


async def commit(world: World, sandbox: Sandbox, **fields: Any) -> sandbox_pb2.CommitResponse:
    request = sandbox_pb2.CommitRequest(request_id=rid(), name=f"sandboxes/{sandbox.id}", **fields)
    answer: sandbox_pb2.CommitResponse = await world.sandboxes.Commit(request, metadata=world.metadata())
    return answer


async def test_a_commit_answers_with_all_that_a_person_may_want_to_know(world: World) -> None:
    sandbox = await given_sandbox(world)

    answer = await commit(world, sandbox)

    image = answer.image
    assert answer.digest == image.digest
    assert image.digest.startswith("sha256:")
    assert image.name == f"sandboxes/{sandbox.id}/images/g000001"
    assert image.reference.endswith(f"@{image.digest}")
    assert (image.status, image.trigger) == (pb.IMAGE_STATUS_ACTIVE, pb.COMMIT_TRIGGER_REQUEST)
    assert (image.raw_bytes, image.layers, image.incarnation) == (len("with ripgrep"), 2, sandbox.incarnation)
    assert [pb.CommitPhase.Name(one.phase) for one in image.phases] == [
        f"COMMIT_PHASE_{name}" for name in ("CAPTURE", "PUSH", "VERIFY", "PROBE", "ACTIVATE")
    ]
    assert image.phases[0].duration.ToTimedelta().total_seconds() == 1
    assert [(one.reason, one.count, list(one.paths)) for one in image.left_out] == [("secret", 1, ["root/.netrc"])]
    assert image.largest[0].path == "usr/bin/root"
    assert "keys or tokens" in image.warnings[0]
    assert image.HasField("end_time")
    assert not image.HasField("progress")


def given_packages(world: World, sandbox: Sandbox, *names: str) -> None:
    """The service knows that these are installed."""
    assert sandbox.incarnation is not None
    packages = [
        Package(
            key=PackageKey(manager=PackageManager.DPKG, name=name, directory="/var/lib/dpkg"),
            version="1.0-1",
            place=PackagePlace.ROOT,
        )
        for name in names
    ]
    world.core.units.rows.package_records[sandbox.id] = PackageRecord(
        sandbox=sandbox.id,
        incarnation=sandbox.incarnation,
        known={one.key: KnownPackage(package=one) for one in packages},
        looked=True,
        complete=True,
    )


async def test_the_packages_of_an_image_are_listed_once_the_registry_has_the_list(world: World) -> None:
    sandbox = await given_sandbox(world)
    given_packages(world, sandbox, "ripgrep", "jq")
    image = (await commit(world, sandbox)).image
    request = pb.GetImageSbomRequest(name=image.name)

    pending = await refused(images(world).GetImageSbom(request, metadata=world.metadata()).read())
    assert world.core.core.commits is not None
    await world.core.core.commits.sboms.attach_due()
    answers = [one async for one in images(world).GetImageSbom(request, metadata=world.metadata())]

    assert (pending.code, pending.reason) == (S.UNAVAILABLE, "SBOM_PENDING")
    sbom, document = answers[0].sbom, b"".join(one.chunk for one in answers[1:])
    assert (sbom.packages, sbom.complete, sbom.size_bytes) == (2, True, len(document))
    assert sbom.digest == f"sha256:{hashlib.sha256(document).hexdigest()}"
    assert [one["purl"] for one in json.loads(document)["components"]] == [
        "pkg:deb/debian/jq@1.0-1",
        "pkg:deb/debian/ripgrep@1.0-1",
    ]


async def test_where_nobody_knew_the_packages_there_is_no_list_of_them(world: World) -> None:
    image = (await commit(world, await given_sandbox(world))).image

    call = images(world).GetImageSbom(pb.GetImageSbomRequest(name=image.name), metadata=world.metadata())

    error = await refused(call.read())
    assert (error.code, error.reason) == (S.NOT_FOUND, "SBOM_UNKNOWN")


async def test_paths_of_any_bytes_can_be_told(world: World) -> None:
    sandbox = await given_sandbox(world)
    world.core.builder.largest = [("usr/\udcff\x00x", 5)]

    answer = await commit(world, sandbox)

    assert answer.image.largest[0].path == "usr/�\x00x"


async def test_a_commit_is_begun_followed_and_listed(world: World) -> None:
    sandbox = await given_sandbox(world)
    world.core.builder.hanging = asyncio.Event()
    begun = await commit(world, sandbox, start_only=True)
    watching = images(world).WatchCommit(pb.WatchCommitRequest(name=begun.image.name), metadata=world.metadata())

    first = await asyncio.wait_for(watching.read(), 5)
    world.core.builder.hanging.set()
    seen = list[pb.Image]()
    while (message := await asyncio.wait_for(watching.read(), 5)) is not grpc.aio.EOF:
        seen.append(message.image)

    assert begun.image.status == first.image.status == pb.IMAGE_STATUS_BUILDING
    assert begun.digest == ""
    assert seen[-1].status == pb.IMAGE_STATUS_ACTIVE
    listed = await images(world).ListImages(
        pb.ListImagesRequest(sandbox=f"sandboxes/{sandbox.id}"), metadata=world.metadata()
    )
    got = await images(world).GetImage(pb.GetImageRequest(name=begun.image.name), metadata=world.metadata())
    assert [one.name for one in listed.images] == [begun.image.name] == [got.image.name]


async def test_a_dry_run_has_no_digest(world: World) -> None:
    answer = await commit(world, await given_sandbox(world), dry_run=True)

    assert (answer.digest, answer.image.status) == ("", pb.IMAGE_STATUS_DISCARDED)
    assert answer.image.raw_bytes > 0


async def test_a_failure_is_an_error_and_stays_to_be_read(world: World) -> None:
    sandbox = await given_sandbox(world)
    world.core.builder.error = ImageTooLargeError("Too large: usr/share has 9 bytes.", path="usr/share")

    refusal = await refused(commit(world, sandbox))

    assert (refusal.code, refusal.reason) == (S.RESOURCE_EXHAUSTED, "IMAGE_TOO_LARGE")
    listed = await images(world).ListImages(
        pb.ListImagesRequest(sandbox=f"sandboxes/{sandbox.id}", everything=True), metadata=world.metadata()
    )
    assert listed.images[0].failure.reason == "IMAGE_TOO_LARGE"
    assert "usr/share" in listed.images[0].failure.message


async def test_a_commit_can_be_cancelled(world: World) -> None:
    sandbox = await given_sandbox(world)
    world.core.builder.hanging = asyncio.Event()
    begun = await commit(world, sandbox, start_only=True)

    answer = await images(world).CancelCommit(
        pb.CancelCommitRequest(request_id=rid(), name=begun.image.name), metadata=world.metadata()
    )
    refusal = await refused(
        images(world).CancelCommit(
            pb.CancelCommitRequest(request_id=rid(), name=begun.image.name), metadata=world.metadata()
        )
    )

    assert answer.image.failure.reason == "COMMIT_CANCELLED"
    assert (refusal.code, refusal.reason) == (S.FAILED_PRECONDITION, "COMMIT_ENDED")


async def test_a_second_commit_is_told_of_the_first(world: World) -> None:
    sandbox = await given_sandbox(world)
    world.core.builder.hanging = asyncio.Event()
    await commit(world, sandbox, start_only=True)

    refusal = await refused(commit(world, sandbox))

    assert (refusal.code, refusal.reason) == (S.ABORTED, "COMMIT_IN_PROGRESS")
    assert refusal.info.metadata["image"] == "g000001"
    assert refusal.retry.retry_delay.seconds == 10
    world.core.builder.hanging.set()


async def test_an_older_image_can_be_rolled_back_to(world: World) -> None:
    sandbox = await given_sandbox(world, "one")
    first = await commit(world, sandbox)
    world.core.builder.roots[sandbox.id] = "two"
    await commit(world, sandbox)

    answer = await images(world).RollbackImage(
        pb.RollbackImageRequest(request_id=rid(), name=first.image.name), metadata=world.metadata()
    )

    assert (answer.image.name, answer.image.status) == (first.image.name, pb.IMAGE_STATUS_ACTIVE)
    assert world.core.backend.next_images[sandbox.id] == first.image.reference


async def test_an_upgrade_of_the_base_is_planned_done_and_refused_while_the_sandbox_runs(world: World) -> None:
    sandbox = await given_sandbox(world, "one")
    first = await commit(world, sandbox)
    name, key = f"sandboxes/{sandbox.id}", rid()
    world.core.running.present = replace(BASE, digest=f"sha256:{'c' * 64}")
    running = await refused(
        images(world).UpgradeImage(pb.UpgradeImageRequest(request_id=rid(), sandbox=name), metadata=world.metadata())
    )
    await world.core.manager.pause(a_request(), sandbox.id, timeout=SOON)
    life = world.core.row(sandbox.id).incarnation
    assert life is not None
    odd = a_package(PackageManager.PIP, "odd", "1;x")
    world.core.units.rows.package_records[sandbox.id] = PackageRecord(
        sandbox=sandbox.id, incarnation=life, complete=True, known={odd.key: KnownPackage(package=odd)}
    )

    plan = await images(world).PlanImageUpgrade(pb.PlanImageUpgradeRequest(sandbox=name), metadata=world.metadata())
    strict = await refused(
        images(world).UpgradeImage(pb.UpgradeImageRequest(request_id=rid(), sandbox=name), metadata=world.metadata())
    )
    request = pb.UpgradeImageRequest(request_id=key, sandbox=name, policy=pb.REPLAY_POLICY_SKIP)
    done = await images(world).UpgradeImage(request, metadata=world.metadata())

    assert (running.code, running.reason) == (S.FAILED_PRECONDITION, "SANDBOX_NOT_RESTING")
    assert (strict.code, strict.reason) == (S.FAILED_PRECONDITION, "REPLAY_INCOMPLETE")
    assert (plan.needed, plan.image, plan.old_base) == (True, first.image.name, str(BASE))
    assert [(one.manager, one.name, one.version, one.action) for one in plan.packages] == [
        (package_pb2.PACKAGE_MANAGER_PIP, "odd", "1;x", pb.REPLAY_ACTION_IMPOSSIBLE)
    ]
    assert (done.image.trigger, done.image.status) == (pb.COMMIT_TRIGGER_UPGRADE, pb.IMAGE_STATUS_DISCARDED)
    assert [(one.reason, list(one.paths)) for one in done.image.left_out] == [("package_failed", ["pip odd 1;x"])]
    assert await images(world).UpgradeImage(request, metadata=world.metadata()) == done


@pytest.mark.parametrize("name", ["", "sandboxes/a", "sandboxes/a/images/latest", "sandboxes/a/images/g0000001", "a"])
async def test_what_is_no_name_of_an_image_is_refused(world: World, name: str) -> None:
    refusal = await refused(images(world).GetImage(pb.GetImageRequest(name=name), metadata=world.metadata()))

    assert refusal.code is S.INVALID_ARGUMENT
    assert refusal.bad_request.field_violations[0].field == "name"


async def test_what_is_not_there_is_not_found(world: World) -> None:
    sandbox = await given_sandbox(world)
    answers = [
        await refused(
            images(world).GetImage(
                pb.GetImageRequest(name=f"sandboxes/{sandbox.id}/images/{tag}"), metadata=world.metadata()
            )
        )
        for tag in ("g000000", "g000007")
    ]

    assert [(one.code, one.reason) for one in answers] == [(S.NOT_FOUND, "IMAGE_NOT_FOUND")] * 2
