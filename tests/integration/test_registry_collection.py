"""Garbage collection of a real docker-registry under a hold, with the hold in a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.backends.registry.client import OciRegistry
from sandboxd.images.ports import BuiltImage
from sandboxd.images.registry import OCI_MANIFEST, Manifest, digest_of
from sandboxd.manager.push_gate import GatedRegistry, PushGate
from sandboxd.manager.push_holding import PushHolding
from sandboxd.model.errors import NotFoundError
from sandboxd.model.image import tag_of
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.push_holds import PostgresPushHolds
from tests.build_world import REPOSITORY, BuildWorld
from tests.eventually import eventually
from tests.fakes.manager import FakeClock
from tests.oci_images import SOON
from tests.registry_front import RealRegistry, a_registry

pytestmark = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="needs docker-registry (Debian: apt-get install docker-registry)"
)
MEGABYTE = 1 << 20
SPAN = timedelta(minutes=5)


@dataclass(kw_only=True)
class Collecting:
    """A registry, and one replica that pushes to it behind the gate."""

    real: RealRegistry
    world: BuildWorld
    holds: PostgresPushHolds
    gate: PushGate

    @property
    def holding(self) -> PushHolding:
        return PushHolding(holds=self.holds, clock=FakeClock())

    async def commit(self, number: int, gate: PushGate | None = None) -> BuiltImage:
        async def build() -> BuiltImage:
            return await self.world.build(generation=number)

        return await (gate or self.gate).carried(build, patient=True, waits=lambda: None, name="commit")

    async def collect(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *("docker-registry", "garbage-collect", "--delete-untagged", str(self.real.root.parent / "registry.yml")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0, said.decode()

    def size(self) -> int:
        return sum(one.stat().st_size for one in self.real.root.rglob("data") if one.is_file())

    async def require_whole(self, built: BuiltImage, number: int) -> None:
        """Pull it as a node would: by its tag, every blob to its last byte."""
        found = await self.world.registry.inner.manifest(REPOSITORY, tag_of(number), timeout=SOON)
        assert built.image is not None
        assert found.digest == built.image.digest
        described = json.loads(found.content)
        for one in (described["config"], *described["layers"]):
            pulled = self.world.registry.inner.blob(REPOSITORY, one["digest"], size=one["size"], timeout=SOON)
            assert sum([len(piece) async for piece in pulled]) == one["size"]


@asynccontextmanager
async def collecting(directory: Path, database: Database, *, cache: str = "") -> AsyncIterator[Collecting]:
    holds = PostgresPushHolds(database)
    gate = PushGate(holds, pause=0.02)
    async with a_registry(directory, cache=cache) as real, OciRegistry(real.address, plain=True) as client:
        world = await BuildWorld.make(GatedRegistry(client, gate), directory)
        # What has no tag is garbage; where a repository never had one, docker-registry 2.8 even ends with an error.
        base = await client.manifest(world.base.repository, world.base.digest, timeout=SOON)
        await client.push(world.base.repository, "base", base, timeout=SOON)
        yield Collecting(real=real, world=world, holds=holds, gate=gate)


async def test_garbage_goes_beside_commits_that_wait_and_what_was_committed_stays_whole(
    tmp_path: Path, database: Database, postgres_url: str
) -> None:
    async with collecting(tmp_path, database) as here:
        here.world.capture.put(b"opt/a", os.urandom(MEGABYTE))
        old = await here.commit(1)
        here.world.capture.put(b"opt/a", os.urandom(MEGABYTE))
        kept = await here.commit(2)
        assert old.image is not None
        await here.world.registry.delete(REPOSITORY, old.image.digest, timeout=SOON)
        before = here.size()

        await here.holding.hold("gc", span=SPAN, timeout=SOON)
        here.world.capture.put(b"opt/a", os.urandom(MEGABYTE))
        # A replica that starts during the hold has never heard of it but from the database.
        late = Database(make_engine(DatabaseSettings(url=postgres_url)))
        others = PushGate(PostgresPushHolds(late), pause=0.02)
        committing = asyncio.create_task(here.commit(3, others))
        await here.collect()
        waited = here.world.capture.captures == 2
        shrunk = before - here.size()
        await here.require_whole(kept, 2)
        assert await here.holding.release("gc")
        new = await committing
        await late.close()

        assert waited, "nothing of the third was captured while the registry collected"
        assert shrunk > MEGABYTE / 2
        await here.require_whole(new, 3)
        await here.require_whole(kept, 2)


async def test_without_a_hold_a_collection_takes_blobs_whose_manifest_is_on_its_way(
    tmp_path: Path, database: Database
) -> None:
    """What the hold is for: blobs that no manifest names yet are garbage."""
    async with collecting(tmp_path, database) as here:
        registry, blob = here.world.registry.inner, os.urandom(1000)
        described = {"mediaType": "application/octet-stream", "digest": digest_of(blob), "size": len(blob)}
        content = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": [described]}
        manifest = Manifest(media_type=OCI_MANIFEST, content=json.dumps(content).encode())

        async with here.gate.together(timeout=SOON):
            await registry.upload("a/b", blob, digest=digest_of(blob), timeout=SOON)
            await here.collect()
            lost = not await registry.has_blob("a/b", digest_of(blob), timeout=SOON)
            await registry.upload("a/b", blob, digest=digest_of(blob), timeout=SOON)
            holding = asyncio.create_task(here.holding.hold("gc", span=SPAN, timeout=SOON))
            await eventually(here.holds.present, within=10)
            await registry.push("a/b", "g000001", manifest, timeout=SOON)
        await holding
        await here.collect()

        assert lost
        assert await registry.has_blob("a/b", digest_of(blob), timeout=SOON)


@pytest.mark.parametrize("cache", ["", "inmemory"])
async def test_what_was_collected_can_be_pushed_again_although_the_registry_was_not_started_again(
    tmp_path: Path, database: Database, cache: str
) -> None:
    """With its cache in memory docker-registry says of what it has collected that it is there."""
    async with collecting(tmp_path, database, cache=cache) as here:
        here.world.capture.put(b"opt/a", os.urandom(MEGABYTE))
        first = await here.commit(1)
        assert first.image is not None
        await here.world.registry.delete(REPOSITORY, first.image.digest, timeout=SOON)
        await here.holding.hold("gc", span=SPAN, timeout=SOON)
        await here.collect()
        await here.holding.release("gc")

        gone = not await here.world.registry.has_blob(REPOSITORY, first.layer_digest, timeout=SOON)
        again = await here.commit(2)

        assert gone
        assert again.layer_digest == first.layer_digest, "the very blob that was collected"
        await here.require_whole(again, 2)
        with pytest.raises(NotFoundError):
            await here.world.registry.manifest(REPOSITORY, tag_of(1), timeout=SOON)


async def test_a_holder_that_dies_ends_the_hold_by_its_time_and_is_told_of(database: Database) -> None:
    holds = PostgresPushHolds(database)
    holding = PushHolding(holds=holds, clock=FakeClock())
    await holding.hold("gc", span=timedelta(milliseconds=300), timeout=SOON)
    gate, waits = PushGate(holds, pause=0.02), asyncio.Event()

    async def push() -> str:
        return "pushed"

    done = await asyncio.wait_for(gate.carried(push, patient=True, waits=waits.set, name="commit"), 20)
    left = await holds.present()

    assert done == "pushed"
    assert waits.is_set()
    assert left is not None
    assert (left.holder, left.running) == ("gc", False)
