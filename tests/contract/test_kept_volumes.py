"""What removed sandboxes leave, and how it goes: the same for the fake, for directories, and for claims in memory."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from sandboxd.backends.kubernetes.kept_volumes import KubernetesKeptVolumes
from sandboxd.backends.kubernetes.objects import Installation, SandboxObjects
from sandboxd.backends.local.kept_volumes import LocalKeptVolumes
from sandboxd.backends.local.layout import Layout
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.manager.release_ports import KeptVolumes
from sandboxd.model.cluster import claims_of, sandbox_resource
from sandboxd.model.errors import DeadlineError
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.volume_release import VolumesStayError
from tests.fakes.backup_pods import BackupCluster
from tests.fakes.kept_volumes import FakeKeptVolumes
from tests.fakes.volume_backups import FakeVolumeBackups
from tests.operator_world import INSTANCE, a_spec

SOON = timedelta(seconds=5)
ACME = ClientId("acme")
_numbers = count(1)


class KeptWorld(Protocol):
    @property
    def kept(self) -> KeptVolumes: ...

    async def given(self, sandbox: SandboxId) -> None:
        """A sandbox that was removed has left its volumes."""

    async def brought_back(self, sandbox: SandboxId) -> None:
        """It is in its place again."""

    async def there(self, sandbox: SandboxId) -> bool:
        """Whether anything of its volumes is there."""
        ...


@dataclass
class FakeKeptWorld:
    volumes: FakeVolumeBackups
    kept: FakeKeptVolumes
    placed: set[SandboxId]

    async def given(self, sandbox: SandboxId) -> None:
        self.placed.discard(sandbox)
        self.volumes.given(sandbox, home={b"a": b"1"})

    async def brought_back(self, sandbox: SandboxId) -> None:
        self.placed.add(sandbox)

    async def there(self, sandbox: SandboxId) -> bool:
        return sandbox in self.volumes.volumes


@dataclass
class LocalKeptWorld:
    layout: Layout
    kept: LocalKeptVolumes

    async def given(self, sandbox: SandboxId) -> None:
        files = self.layout.sandbox(sandbox)
        files.make()
        (files.home / "a").write_text("1")
        closed = files.workspace / "closed"
        closed.mkdir()
        (closed / "b").write_text("2")
        closed.chmod(0)
        self.layout.keep(sandbox)

    async def brought_back(self, sandbox: SandboxId) -> None:
        self.layout.bring_back(sandbox)

    async def there(self, sandbox: SandboxId) -> bool:
        return any(sandbox in path.name for place in (self.layout.kept, self.layout.sandboxes) for path in _in(place))


@dataclass
class ClusterKeptWorld:
    cluster: BackupCluster
    kept: KubernetesKeptVolumes

    async def given(self, sandbox: SandboxId) -> None:
        await self.cluster.give(ACME, sandbox)
        for number, name in enumerate(claims_of(sandbox).values()):
            claim = self.cluster.objects["persistentvolumeclaims", "client-acme", name]
            uid = f"uid-{next(_numbers)}"
            volume = f"pv-{uid}"
            await self.cluster.put(
                "persistentvolumeclaims",
                {
                    **claim,
                    "metadata": {**claim["metadata"], "uid": uid},
                    "spec": {"volumeName": volume},
                    "status": {"phase": "Bound", "capacity": {"storage": f"{number + 1}Gi"}},
                },
            )
            await self.retained(volume, "Delete")

    async def retained(self, volume: str, policy: str) -> None:
        await self.cluster.put(
            "persistentvolumes", {"metadata": {"name": volume}, "spec": {"persistentVolumeReclaimPolicy": policy}}
        )

    async def brought_back(self, sandbox: SandboxId) -> None:
        made = sandbox_resource(sandbox, a_spec(), namespace="client-acme", instance=INSTANCE)
        await self.cluster.put("sandboxes", {**made, "metadata": {**made["metadata"], "uid": "placed"}})

    async def there(self, sandbox: SandboxId) -> bool:
        return any(sandbox in claim["metadata"]["name"] for claim in self.cluster.all("persistentvolumeclaims"))


def _in(place: Path) -> list[Path]:
    return [*place.iterdir()] if place.is_dir() else []


@pytest.fixture(params=["fake", "local", "cluster"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> KeptWorld:
    match request.param:
        case "fake":
            volumes, placed = FakeVolumeBackups(), set[SandboxId]()
            return FakeKeptWorld(volumes, FakeKeptVolumes(volumes=volumes, runs=placed.__contains__), placed)
        case "local":
            return LocalKeptWorld(Layout(data=tmp_path), LocalKeptVolumes(data=tmp_path))
        case _:
            cluster = BackupCluster(tmp_path)
            await cluster.furnish()
            installation = Installation(instance=INSTANCE, namespace_prefix="client-", template="default")
            return ClusterKeptWorld(
                cluster, KubernetesKeptVolumes(SandboxObjects(cluster, installation), clock=SystemClock())
            )


def a_sandbox() -> SandboxId:
    return SandboxId(f"sbx-{next(_numbers):026}")


async def test_what_is_kept_is_found_with_its_size_and_goes(world: KeptWorld) -> None:
    sandbox, other = a_sandbox(), a_sandbox()
    await world.given(sandbox)
    await world.given(other)

    found = await world.kept.find(sandbox, timeout=SOON)
    await world.kept.release(sandbox, found, timeout=SOON)
    await world.kept.release(sandbox, found, timeout=SOON)  # whoever asked died meanwhile

    assert found
    assert all(one.size_bytes and not one.hindrance for one in found)
    assert not await world.there(sandbox)
    assert await world.there(other)


async def test_who_has_nothing_has_nothing_to_release(world: KeptWorld) -> None:
    sandbox = a_sandbox()

    assert list(await world.kept.find(sandbox, timeout=SOON)) == []
    await world.kept.release(sandbox, [], timeout=SOON)


async def test_what_was_made_in_its_place_since_is_another_one_and_stays(world: KeptWorld) -> None:
    sandbox = a_sandbox()
    await world.given(sandbox)
    stale = await world.kept.find(sandbox, timeout=SOON)
    await world.kept.release(sandbox, stale, timeout=SOON)
    await world.given(sandbox)

    await world.kept.release(sandbox, stale, timeout=SOON)

    assert await world.there(sandbox)


async def test_a_sandbox_in_its_place_has_nothing_kept(world: KeptWorld) -> None:
    sandbox = a_sandbox()
    await world.given(sandbox)
    await world.brought_back(sandbox)

    assert list(await world.kept.find(sandbox, timeout=SOON)) == []


async def test_a_directory_that_was_on_its_way_out_when_the_service_died_goes_with_the_next_release(
    tmp_path: Path,
) -> None:
    world = LocalKeptWorld(Layout(data=tmp_path), LocalKeptVolumes(data=tmp_path))
    sandbox = a_sandbox()
    await world.given(sandbox)
    (world.layout.kept / sandbox).rename(world.layout.kept / f".leaving-{sandbox}-0")

    await world.kept.release(sandbox, [], timeout=SOON)

    assert not await world.there(sandbox)


async def test_a_volume_that_the_cluster_would_retain_is_told_of_and_its_claim_stays(tmp_path: Path) -> None:
    cluster = BackupCluster(tmp_path)
    await cluster.furnish()
    installation = Installation(instance=INSTANCE, namespace_prefix="client-", template="default")
    world = ClusterKeptWorld(cluster, KubernetesKeptVolumes(SandboxObjects(cluster, installation), clock=SystemClock()))
    sandbox = a_sandbox()
    await world.given(sandbox)
    volume = cluster.all("persistentvolumeclaims")[0]["spec"]["volumeName"]
    await world.retained(volume, "Retain")

    found = await world.kept.find(sandbox, timeout=SOON)
    with pytest.raises(VolumesStayError, match="Set it to Delete"):
        await world.kept.release(sandbox, found, timeout=SOON)

    assert any("Retain" in one.hindrance for one in found)
    assert len(cluster.all("persistentvolumeclaims")) == 2


async def test_a_volume_that_the_driver_does_not_give_back_is_waited_for_and_no_longer_than_said(
    tmp_path: Path,
) -> None:
    cluster = BackupCluster(tmp_path)
    await cluster.furnish()
    installation = Installation(instance=INSTANCE, namespace_prefix="client-", template="default")
    world = ClusterKeptWorld(cluster, KubernetesKeptVolumes(SandboxObjects(cluster, installation), clock=SystemClock()))
    sandbox = a_sandbox()
    await world.given(sandbox)
    (first, *_) = cluster.all("persistentvolumeclaims")
    volume = cluster.objects["persistentvolumes", "", first["spec"]["volumeName"]]
    bound = {**volume["spec"], "claimRef": {"uid": first["metadata"]["uid"]}}
    await cluster.put("persistentvolumes", {**volume, "spec": bound})

    with pytest.raises(DeadlineError, match="storage driver"):
        await world.kept.release(
            sandbox, await world.kept.find(sandbox, timeout=SOON), timeout=timedelta(milliseconds=300)
        )
