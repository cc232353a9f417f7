"""Volumes of real pods are backed up by VolumeSnapshots, with the real definitions; a test plays the storage."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.volume_backups import KubernetesVolumeBackups
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.dev.node import ToolchainError
from sandboxd.manager.backend_port import SandboxSpec
from sandboxd.model.backup import BackupMethod, BackupSetId, RestoreId
from sandboxd.model.cluster import INSTANCE_LABEL, claims_of, pod_of
from sandboxd.model.sandbox import Tier
from sandboxd.volumes.ports import RestoreOrder, VolumesOf, VolumesProgress
from tests.chart.helm import NO_HELM, TRIAL, find_helm, render
from tests.contract.test_running_images import a_spec, an_incarnation
from tests.eventually import eventually
from tests.installation import ClusterInstallation, built_images
from tests.kube import Cluster
from tests.snapshot_driver import SnapshotDriver
from tools.snapshot_definitions import KINDS, ensure_snapshot_definitions

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
PATIENCE: Final = timedelta(seconds=120)
FILE: Final = "/workspace/file"
NOTES: Final = "/home/gemini/notes"


@dataclass(kw_only=True)
class SnapshotWorld:
    """What a test drives."""

    installation: ClusterInstallation
    backend: KubernetesBackend
    backups: KubernetesVolumeBackups
    driver: SnapshotDriver

    @property
    def namespace(self) -> str:
        return f"{self.installation.instance}-acme"

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        return self.installation.kubectl("-n", self.namespace, *arguments, check=check)

    async def inside(self, spec: SandboxSpec, words: str) -> str:
        """What root of the sandbox is told by its shell."""
        place = ("exec", pod_of(spec.sandbox), "-c", "sandbox", "--", "sh", "-c", words)
        return await asyncio.to_thread(self.kubectl, *place)

    def volumes_of(self, spec: SandboxSpec) -> set[str]:
        found = json.loads(self.kubectl("get", "pvc", *claims_of(spec.sandbox).values(), "-o", "json"))
        return {one["spec"]["volumeName"] for one in found["items"]}


def volumes_of(spec: SandboxSpec) -> VolumesOf:
    return VolumesOf(
        sandbox=spec.sandbox,
        client=spec.client,
        freelancer=spec.freelancer,
        tier=Tier.BASIC,
        resources=spec.resources,
    )


def ignored(progress: VolumesProgress) -> None:
    pass


@pytest.fixture(scope="module")
def definitions() -> Sequence[str]:
    try:
        return [str(one) for one in ensure_snapshot_definitions()]
    except ToolchainError as error:
        pytest.skip(str(error))


@pytest.fixture
def installation(cluster: Cluster, tmp_path: Path) -> Iterator[ClusterInstallation]:
    if cluster.places is None:
        pytest.skip("the played storage has its volumes on the development cluster's own node")
    images = built_images(cluster, "server")
    made = ClusterInstallation(cluster=cluster, instance=f"t-{secrets.token_hex(4)}", home=tmp_path, images=images)
    try:
        made.prepare()
        made.apply_template(storageClassName=made.instance)
        made.extra = {
            "SANDBOXD_BACKUPS_METHOD": "snapshots",
            "SANDBOXD_KUBERNETES_BACKUP_IMAGE": images["server"],
        }
        body = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": made.instance, "labels": {INSTANCE_LABEL: made.instance}},
            "provisioner": f"{made.instance}.sandboxd.test",
            "volumeBindingMode": "WaitForFirstConsumer",
        }
        made.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(body))
        made.start_operator()
        yield made
    finally:
        made.clean()
        made.stop_operator()
        made.kubectl("delete", "storageclass", made.instance, "--ignore-not-found")


@pytest.fixture
async def world(installation: ClusterInstallation, tmp_path: Path) -> AsyncIterator[SnapshotWorld]:
    async with installation.client() as api:
        backend, _ = installation.backend(api)
        prefix = f"{installation.instance}-"
        names = Installation(instance=installation.instance, namespace_prefix=prefix, template=installation.instance)
        backups = KubernetesVolumeBackups(
            api,
            installation=names,
            clock=SystemClock(),
            name=lambda: secrets.token_hex(8),
            method=BackupMethod.SNAPSHOTS,
        )
        storage = tmp_path / "storage"
        for one in (storage, *storage.parents):
            if one.exists():
                one.chmod(one.stat().st_mode | 0o111)  # pods go through them
        driver = SnapshotDriver(api=api, directory=storage, storage_class=installation.instance, waits_for_pod=True)
        following = asyncio.create_task(backend.run())
        async with driver.running(every=0.3):
            yield SnapshotWorld(installation=installation, backend=backend, backups=backups, driver=driver)
            for observation in await backend.list():
                await backend.erase(observation.sandbox, timeout=PATIENCE)
            await eventually(lambda: not list((storage / "volumes").glob("*")), within=60, every=0.2)
        following.cancel()


@pytest.fixture
def known_snapshots(world: SnapshotWorld, definitions: Sequence[str]) -> Iterator[None]:
    """The cluster knows VolumeSnapshots, as long as a test lasts; it is left as it was found."""
    kubectl = world.installation.kubectl
    names = [f"{kind}.snapshot.storage.k8s.io" for kind in KINDS]
    there = kubectl("get", "crd", "-o", "name")
    for one in definitions:
        kubectl("apply", "--server-side", "-f", one)
    kubectl("wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{name}" for name in names))
    yield
    if names[0] not in there:
        kubectl("delete", "crd", *names, "--wait=false")


async def test_a_running_sandbox_is_snapshotted_and_comes_back_into_its_claims(
    world: SnapshotWorld, known_snapshots: None
) -> None:
    kubectl, backups = world.installation.kubectl, world.backups
    spec, incarnation = a_spec(), an_incarnation()
    backup = BackupSetId(f"bak-{secrets.token_hex(13)}")
    await world.backend.start(spec, incarnation, timeout=PATIENCE)
    await world.inside(spec, f"echo mine > {FILE}; chown 1000 {FILE}; echo notes > {NOTES}")

    taken = await backups.take(backup, volumes_of(spec), timeout=PATIENCE, progress=ignored)

    assert {one.handle for one in taken.volumes} == world.driver.stored
    contents = json.loads(
        kubectl("get", "volumesnapshotcontents", "-o", "json", f"--selector=sandboxd.dev/backup-set={backup}")
    )
    assert {one["spec"]["deletionPolicy"] for one in contents["items"]} == {"Retain"}

    await world.inside(spec, f"echo lost > {FILE}; rm {NOTES}")
    await world.backend.stop(spec.sandbox, incarnation, grace=timedelta(seconds=1), timeout=PATIENCE)
    former = world.volumes_of(spec)
    order = RestoreOrder(
        id=RestoreId(f"rst-{secrets.token_hex(13)}"),
        into=volumes_of(spec),
        snapshots={one.volume: one.snapshot for one in taken.volumes},
    )
    back = await backups.restore(order, timeout=PATIENCE, progress=ignored)
    await world.backend.start(spec, an_incarnation(), timeout=PATIENCE)

    assert back.entries >= 2
    words = await world.inside(spec, f"cat {FILE} {NOTES}; stat -c %u {FILE}")
    assert words.split() == ["mine", "notes", "1000"]
    assert world.volumes_of(spec).isdisjoint(former)
    assert "Snapshots" in world.kubectl("get", "sandboxbackups", "-o", "wide")
    await eventually(lambda: not any(world.driver.place(one).exists() for one in former), within=30, every=0.2)
    await backups.end(order.id, timeout=PATIENCE)

    await backups.verify(spec.client, content=False, timeout=PATIENCE)
    proof = await backups.forget(spec.client, [backup], prune=True, timeout=PATIENCE)

    assert set(proof.snapshots) == {one.snapshot for one in taken.volumes}
    assert world.driver.stored == set()
    assert world.kubectl("get", "volumesnapshots", "-o", "name") == ""


@pytest.mark.skipif(find_helm() is None, reason=NO_HELM)
async def test_the_operator_changes_volumes_of_its_clients_alone(world: SnapshotWorld) -> None:
    instance = world.installation.instance
    values = {**TRIAL, "instance": instance, "namespacePrefix": f"{instance}-", "backups": {"method": "snapshots"}}
    objects = [
        one
        for one in render(values, release=instance, namespace=f"{instance}-system")
        if one["kind"].startswith("ValidatingAdmission") and one["metadata"]["name"].endswith("-volumes")
    ]
    assert len(objects) == 2
    await world.installation.cluster.apply(objects)
    operator = f"system:serviceaccount:{instance}-system:{instance}-sandboxd-operator"
    names = [f"{instance}-{whose}" for whose in ("ours", "theirs")]
    try:
        for name, namespace in zip(names, (f"{instance}-acme", "somebodys"), strict=True):
            await world.installation.cluster.apply([a_volume(name, namespace, instance)])

        def patched(name: str, body: Mapping[str, Any]) -> str:
            words = ("patch", "pv", name, "--type=merge", f"-p={json.dumps(body)}", "--dry-run=server")
            try:
                return world.installation.kubectl(*words, f"--as={operator}", "--as-group=system:masters")
            except AssertionError as error:
                return str(error)

        label = {"metadata": {"labels": {"sandboxd.dev/restore": "x"}}}
        moved = {"spec": {"claimRef": {"namespace": "somebodys"}}}
        await eventually(lambda: "clients' namespaces alone" in patched(names[1], label), within=30, every=0.3)

        assert "patched" in patched(names[0], label)
        assert "clients' namespaces alone" in patched(names[0], moved)
    finally:
        for kind, those in (("pv", names), (objects[0]["kind"], [objects[0]["metadata"]["name"]])):
            world.installation.kubectl("delete", kind, *those, "--ignore-not-found")
        world.installation.kubectl("delete", objects[1]["kind"], objects[1]["metadata"]["name"], "--ignore-not-found")


def a_volume(name: str, namespace: str, instance: str) -> Mapping[str, Any]:
    """A volume that waits for a claim which never comes."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {INSTANCE_LABEL: instance}},
        "spec": {
            "capacity": {"storage": "1Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": "none"},
            "storageClassName": "none",
            "hostPath": {"path": "/nowhere"},
        },
    }
