"""The care of kept images on a real docker-registry, with the rows in a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.images.registry import OCI_MANIFEST, Manifest, digest_of
from sandboxd.manager.changes import Changes
from sandboxd.manager.image_care import ImageCare
from sandboxd.manager.image_care_metrics import ImageCareMetrics
from sandboxd.manager.image_losses import ImageLosses
from sandboxd.manager.image_survey import ImageSurvey
from sandboxd.manager.own_deeds import UNRECORDED
from sandboxd.model.errors import NotFoundError, UnavailableError
from sandboxd.model.failpoints import FailpointError, arming
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, make_id
from sandboxd.model.image import (
    LATEST,
    CommitTrigger,
    Generation,
    GenerationId,
    GenerationStatus,
    ImageContent,
)
from sandboxd.model.image_errors import ManyImagesLostError, RegistryKeepsError
from sandboxd.model.image_keeping import KeepingPolicy
from sandboxd.model.image_names import user_repository
from sandboxd.model.sandbox import Sandbox
from sandboxd.persistence.engine import Database
from sandboxd.persistence.image_sightings import PostgresImageSightings
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.image_care import FakeImageUses
from tests.fakes.images import FakeRunningImages
from tests.fakes.manager import FakeBackend, FakeClock, FakeWakeups
from tests.registry_front import Front, a_front, a_registry

pytestmark = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="needs docker-registry (Debian: apt-get install docker-registry)"
)

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=9)
SOON = timedelta(seconds=20)
CLIENT, FREELANCER = ClientId("acme"), FreelancerId("ada")
REPOSITORY = user_repository(CLIENT, FREELANCER)
G = GenerationStatus
WAY = (G.PUSHED, G.VERIFIED, G.ACTIVE)
_numbers = count(1)


def an_id(prefix: str) -> str:
    return make_id(prefix, at=NOW, entropy=next(_numbers).to_bytes(10, "big"))


@dataclass(kw_only=True)
class World:
    """Rows and images that belong together."""

    database: Database
    front: Front
    registry: OciRegistry
    clock: FakeClock
    uses: FakeImageUses
    running: FakeRunningImages

    @property
    def units(self) -> PostgresUnitsOfWork:
        return PostgresUnitsOfWork(self.database)

    def care(self) -> ImageCare:
        sightings = PostgresImageSightings(self.database)
        metrics = ImageCareMetrics(CollectorRegistry())
        return ImageCare(
            units=self.units,
            registry=self.registry,
            survey=ImageSurvey(
                units=self.units,
                registry=self.registry,
                registry_name=self.front.address,
                repository_of=user_repository,
                sightings=sightings,
                policy=KeepingPolicy(previous=1),
                clock=self.clock,
            ),
            uses=[self.uses],
            sightings=sightings,
            losses=ImageLosses(
                units=self.units,
                running=self.running,
                changes=Changes(wakeups=FakeWakeups()),
                deeds=UNRECORDED,
                metrics=metrics,
                clock=self.clock,
            ),
            deeds=UNRECORDED,
            metrics=metrics,
            clock=self.clock,
        )

    async def given_sandbox(self) -> SandboxId:
        sandbox = Sandbox(
            id=SandboxId(an_id("sbx")),
            client=CLIENT,
            freelancer=FREELANCER,
            create_time=LONG_AGO,
            update_time=LONG_AGO,
            last_use_time=LONG_AGO,
        )
        async with self.units.begin() as work:
            await work.freelancers.ensure(CLIENT, FREELANCER, at=LONG_AGO)
            await work.sandboxes.add(sandbox)
            await work.commit()
        return sandbox.id

    async def pushed(self, root: str, *tags: str) -> str:
        """Push an image of one layer under tags; answers its digest."""
        layer, config = root.encode(), json.dumps({"root": root}).encode()
        for blob in (layer, config):
            await self.registry.upload(REPOSITORY, blob, digest=digest_of(blob), timeout=SOON)
        described = [{"digest": digest_of(blob), "size": len(blob), "mediaType": "a/b"} for blob in (config, layer)]
        text = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described[0], "layers": described[1:]}
        manifest = Manifest(media_type=OCI_MANIFEST, content=json.dumps(text).encode())
        for tag in tags:
            await self.registry.push(REPOSITORY, tag, manifest, timeout=SOON)
        return manifest.digest

    async def committed(self, sandbox: SandboxId, root: str) -> Generation:
        """A commit that became active, in all its steps."""
        generation = Generation(
            id=GenerationId(an_id("gen")),
            sandbox=sandbox,
            client=CLIENT,
            freelancer=FREELANCER,
            number=1,
            incarnation=IncarnationId("inc"),
            trigger=CommitTrigger.REQUEST,
            registry=self.front.address,
            repository=REPOSITORY,
            create_time=LONG_AGO,
            update_time=LONG_AGO,
        )
        async with self.units.begin() as work:
            begun = await work.generations.begin(generation)
            await work.commit()
        digest = await self.pushed(root, begun.tag, LATEST)
        made = replace(begun, content=ImageContent(digest=digest, compressed_bytes=len(root)))
        async with self.units.begin() as work:
            row = await work.sandboxes.get(sandbox, for_update=True)
            if row.image is not None:
                former = await work.generations.get(row.image.generation)
                await work.generations.save(former.enter(G.SUPERSEDED, at=LONG_AGO))
            for step in WAY:
                made = made.enter(step, at=LONG_AGO + timedelta(minutes=begun.number))
                await work.generations.save(made)
            await work.sandboxes.save(replace(row, image=made.image, version=row.version + 1))
            await work.commit()
        return made

    async def statuses(self) -> list[str]:
        async with self.units.begin() as work:
            rows = await work.generations.of_owner(CLIENT, FREELANCER, numbers=range(1, 100))
        return [row.status.value for row in rows]

    async def tags(self) -> list[str]:
        return sorted(await self.registry.tags(REPOSITORY, timeout=SOON))


@pytest.fixture
async def world(tmp_path: Path, database: Database) -> AsyncIterator[World]:
    async with (
        a_registry(tmp_path) as real,
        a_front(real) as front,
        OciRegistry(front.address, plain=True) as client,
    ):
        yield World(
            database=database,
            front=front,
            registry=client,
            clock=FakeClock(NOW),
            uses=FakeImageUses(),
            running=FakeRunningImages(FakeBackend(FakeAgentConnector())),
        )


async def test_old_images_and_a_crashed_push_leave_the_registry_and_what_is_used_stays(world: World) -> None:
    sandbox = await world.given_sandbox()
    images = [await world.committed(sandbox, f"root {n}") for n in range(1, 6)]
    orphan = await world.pushed("a crashed push", "g000042")
    assert images[0].content is not None
    world.uses.names = {images[0].content.digest: "Pod acme/sbx-0"}

    first = await world.care().run()
    world.clock.advance(timedelta(days=1).total_seconds())
    second = await world.care().run()

    assert (first.reaped, first.orphans, second.reaped, second.orphans) == (2, 0, 0, 1)
    assert await world.statuses() == ["superseded", "deleted", "deleted", "superseded", "active"]
    assert await world.tags() == ["g000001", "g000004", "g000005", "latest"]
    for digest in (orphan, images[1].content.digest if images[1].content else ""):
        with pytest.raises(NotFoundError):
            await world.registry.manifest(REPOSITORY, digest, timeout=SOON)


async def test_one_digest_under_two_tags_goes_when_both_go(world: World) -> None:
    sandbox = await world.given_sandbox()
    for root in ("same", "same", "two", "three"):
        await world.committed(sandbox, root)

    report = await world.care().run()

    assert report.reaped == 2
    assert await world.tags() == ["g000003", "g000004", "latest"]


@pytest.mark.parametrize("step", ["reap.after_mark", "reap.after_delete", "reap.after_row"])
async def test_a_crash_at_any_step_is_ended_by_the_next_pass(world: World, step: str) -> None:
    sandbox = await world.given_sandbox()
    for number in range(1, 4):
        await world.committed(sandbox, f"root {number}")

    with arming(f"{step}=error"), pytest.raises(FailpointError):
        await world.care().run()
    await world.care().run()

    assert await world.statuses() == ["deleted", "superseded", "active"]
    assert await world.tags() == ["g000002", "g000003", "latest"]


async def test_three_at_once_delete_each_image_once(world: World) -> None:
    sandbox = await world.given_sandbox()
    for number in range(1, 7):
        await world.committed(sandbox, f"root {number}")

    reports = await asyncio.gather(*(world.care().run() for _ in range(3)))

    assert sum(report.reaped for report in reports) == 4
    assert sum(report.failed for report in reports) == 0
    assert await world.statuses() == ["deleted"] * 4 + ["superseded", "active"]


async def test_a_registry_without_deletion_is_named_and_the_rest_stays(world: World) -> None:
    sandbox = await world.given_sandbox()
    for number in range(1, 5):
        await world.committed(sandbox, f"root {number}")
    world.front.before = lambda request: web.Response(status=405) if request.method == "DELETE" else None

    with pytest.raises(RegistryKeepsError, match=r"storage\.delete\.enabled"):
        await world.care().run()
    world.front.before = lambda _: None
    report = await world.care().run()

    assert report.reaped == 2
    assert len(await world.tags()) == 3


async def test_a_registry_that_is_away_changes_nothing(world: World) -> None:
    sandbox = await world.given_sandbox()
    for number in range(1, 4):
        await world.committed(sandbox, f"root {number}")
    world.front.before = lambda _: web.Response(status=503, headers={"Retry-After": "0"})

    with pytest.raises(UnavailableError):
        await world.care().run()

    assert await world.statuses() == ["superseded", "superseded", "active"]


async def test_a_lost_image_is_replaced_and_a_registry_without_any_is_not_believed(world: World) -> None:
    sandbox = await world.given_sandbox()
    images = [await world.committed(sandbox, f"root {n}") for n in (1, 2)]
    assert images[1].content is not None
    await world.registry.delete(REPOSITORY, images[1].content.digest, timeout=SOON)

    report = await world.care().run()

    assert report.lost == 1
    assert await world.statuses() == ["active", "failed"]
    async with world.units.begin() as work:
        assert (await work.sandboxes.get(sandbox)).image == images[0].image
        assert len(await work.generations.untold(limit=9)) == 1

    for number in (3, 4, 5):
        await world.committed(await world.given_sandbox(), f"root {number}")
    for tag in (tag for tag in await world.tags() if tag != LATEST):
        manifest = await world.registry.manifest(REPOSITORY, tag, timeout=SOON)
        await world.registry.delete(REPOSITORY, manifest.digest, timeout=SOON)
    with pytest.raises(ManyImagesLostError):
        await world.care().run()
