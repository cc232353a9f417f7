"""Volumes of real pods are backed up by VolumeSnapshots: of a storage that a test plays, and of a CSI driver."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

import pytest

from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.volume_backups import KubernetesVolumeBackups
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.ctl.client import Client
from sandboxd.dev.node import ToolchainError
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.manager.backend_port import SandboxSpec
from sandboxd.model.backup import BackupMethod, BackupSetId, RestoreId
from sandboxd.model.cluster import INSTANCE_LABEL, claims_of, pod_of
from sandboxd.model.sandbox import Tier
from sandboxd.v1 import backup_pb2, sandbox_pb2
from sandboxd.volumes.ports import RestoreOrder, TakenVolumes, VolumesOf, VolumesProgress
from tests.chart.helm import NO_HELM, TRIAL, find_helm, render
from tests.cluster.stack import ClusterStack, a_cluster_stack
from tests.cluster.test_backups import FILL, LOOK
from tests.contract.test_running_images import a_spec, an_incarnation
from tests.csi_storage import HOSTPATH, CsiStorage, known
from tests.eventually import eventually
from tests.installation import ClusterInstallation, built_images
from tests.kube import Cluster
from tests.snapshot_driver import SnapshotDriver
from tools.csi import ensure_csi, found_csi
from tools.snapshot_definitions import ensure_snapshot_definitions

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
PATIENCE: Final = timedelta(seconds=120)
FILE: Final = "/workspace/file"
NOTES: Final = "/home/gemini/notes"
COMPLETE, FAILED = backup_pb2.BACKUP_STATUS_COMPLETE, backup_pb2.BACKUP_STATUS_FAILED
WRITE: Final = """
(n=0; while :; do n=$((n+1)); echo $n >> /workspace/ticks; echo $n >> /home/gemini/ticks; done) >/dev/null 2>&1 &
until [ -s /home/gemini/ticks ]; do sleep 0.05; done
"""
PLAYED: Final = pytest.mark.parametrize("kind", ["played"], indirect=True, scope="module")
REAL: Final = pytest.mark.parametrize("kind", ["real"], indirect=True, scope="module")


class Storage(Protocol):
    """What makes volumes and snapshots."""

    @property
    def stored(self) -> set[str]:
        """Handles of the snapshots that it has."""

    @property
    def volumes(self) -> set[str]:
        """Handles of the volumes that it has."""


@dataclass(kw_only=True)
class SnapshotWorld:
    """What a test drives."""

    installation: ClusterInstallation
    backend: KubernetesBackend
    backups: KubernetesVolumeBackups
    storage: Storage

    @property
    def namespace(self) -> str:
        return f"{self.installation.instance}-acme"

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        return self.installation.kubectl("-n", self.namespace, *arguments, check=check)

    def get(self, *arguments: str) -> list[dict[str, Any]]:  # Any: JSON
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", *arguments, "-o", "json"))["items"]
        return found

    async def inside(self, spec: SandboxSpec, words: str) -> str:
        """What root of the sandbox is told by its shell."""
        place = ("exec", pod_of(spec.sandbox), "-c", "sandbox", "--", "sh", "-c", words)
        return await asyncio.to_thread(self.kubectl, *place)

    def volumes_of(self, spec: SandboxSpec) -> set[str]:
        """Handles of its volumes."""
        names = {one["spec"]["volumeName"] for one in self.get("pvc", *claims_of(spec.sandbox).values())}
        found = [one for one in self.get("pv") if one["metadata"]["name"] in names]
        return {one["spec"].get("csi", {}).get("volumeHandle", one["metadata"]["name"]) for one in found}


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


def a_set() -> BackupSetId:
    return BackupSetId(f"bak-{secrets.token_hex(13)}")


def an_order(taken: TakenVolumes, spec: SandboxSpec) -> RestoreOrder:
    return RestoreOrder(
        id=RestoreId(f"rst-{secrets.token_hex(13)}"),
        into=volumes_of(spec),
        snapshots={one.volume: one.snapshot for one in taken.volumes},
    )


@pytest.fixture(scope="module")
def definitions() -> Sequence[str]:
    try:
        return [str(one) for one in ensure_snapshot_definitions()]
    except ToolchainError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["played", "real"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the storage: one that the tests play, or the real sidecars with a driver."""
    return str(request.param)


@pytest.fixture(scope="module")
def csi_programs(kind: str) -> Path | None:
    """Building them takes longer than a test may, so CI does that before."""
    if kind != "real":
        return None
    if os.environ.get("CI"):
        return ensure_csi()
    if (found := found_csi()) is None:
        pytest.skip("needs a CSI driver and its sidecars: .venv/bin/python -m tools.csi builds them")
    return found


@pytest.fixture(scope="module")
def installation(
    cluster: Cluster, kind: str, tmp_path_factory: pytest.TempPathFactory, csi_programs: Path | None
) -> Iterator[ClusterInstallation]:
    if cluster.places is None:
        pytest.skip("the storage has its volumes on the development cluster's own node")
    images = built_images(cluster, "server")
    home = tmp_path_factory.mktemp(kind)
    made = ClusterInstallation(cluster=cluster, instance=f"t-{secrets.token_hex(4)}", home=home, images=images)
    try:
        made.prepare()
        made.apply_template(storageClassName=made.instance)
        made.extra = {
            "SANDBOXD_BACKUPS_METHOD": "snapshots",
            "SANDBOXD_KUBERNETES_BACKUP_IMAGE": images["server"],
        }
        made.start_operator()
        yield made
    finally:
        made.clean()
        made.stop_operator()


@pytest.fixture(scope="module")
def csi(
    installation: ClusterInstallation, csi_programs: Path | None, definitions: Sequence[str]
) -> Iterator[CsiStorage | None]:
    """The real storage, where it is that one."""
    if csi_programs is None:
        yield None
        return
    with CsiStorage(installation=installation, programs=csi_programs).running(definitions) as it:
        yield it
        installation.forget_sandboxes()


@pytest.fixture
async def world(
    installation: ClusterInstallation, csi: CsiStorage | None, tmp_path: Path
) -> AsyncIterator[SnapshotWorld]:
    async with installation.client() as api, a_storage(installation, api, csi, tmp_path / "storage") as storage:
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
        following = asyncio.create_task(backend.run())
        yield SnapshotWorld(installation=installation, backend=backend, backups=backups, storage=storage)
        for observation in await backend.list():
            await backend.erase(observation.sandbox, timeout=PATIENCE)
        await eventually(lambda: not storage.volumes, within=60, every=0.2)
        following.cancel()


@asynccontextmanager
async def a_storage(
    installation: ClusterInstallation, api: KubeApi, csi: CsiStorage | None, place: Path
) -> AsyncIterator[Storage]:
    if csi is not None:
        yield csi
        return
    body = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": installation.instance, "labels": {INSTANCE_LABEL: installation.instance}},
        "provisioner": f"{installation.instance}.sandboxd.test",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    installation.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(body))
    for one in (place, *place.parents):
        if one.exists():
            one.chmod(one.stat().st_mode | 0o111)  # pods go through them
    driver = SnapshotDriver(api=api, directory=place, storage_class=installation.instance, waits_for_pod=True)
    async with driver.running(every=0.3):
        yield driver
    installation.kubectl("delete", "storageclass", installation.instance, "--ignore-not-found")


@pytest.fixture
def known_snapshots(
    installation: ClusterInstallation, csi: CsiStorage | None, definitions: Sequence[str]
) -> Iterator[None]:
    """The cluster knows VolumeSnapshots, as long as a test lasts; it is left as it was found."""
    if csi is not None:
        yield
        return
    with known(installation, definitions):
        yield


async def test_a_running_sandbox_is_snapshotted_and_comes_back_into_its_claims(
    world: SnapshotWorld, known_snapshots: None
) -> None:
    kubectl, backups = world.installation.kubectl, world.backups
    spec, incarnation, backup = a_spec(), an_incarnation(), a_set()
    await world.backend.start(spec, incarnation, timeout=PATIENCE)
    await world.inside(spec, f"echo mine > {FILE}; chown 1000 {FILE}; echo notes > {NOTES}")

    taken = await backups.take(backup, volumes_of(spec), timeout=PATIENCE, progress=ignored)

    assert {one.handle for one in taken.volumes} == world.storage.stored
    contents = json.loads(
        kubectl("get", "volumesnapshotcontents", "-o", "json", f"--selector=sandboxd.dev/backup-set={backup}")
    )
    assert {one["spec"]["deletionPolicy"] for one in contents["items"]} == {"Retain"}

    await world.inside(spec, f"echo lost > {FILE}; rm {NOTES}")
    await world.backend.stop(spec.sandbox, incarnation, grace=timedelta(seconds=1), timeout=PATIENCE)
    former = world.volumes_of(spec)
    order = an_order(taken, spec)
    back = await backups.restore(order, timeout=PATIENCE, progress=ignored)
    await world.backend.start(spec, an_incarnation(), timeout=PATIENCE)

    assert back.entries >= 2
    words = await world.inside(spec, f"cat {FILE} {NOTES}; stat -c %u {FILE}")
    assert words.split() == ["mine", "notes", "1000"]
    assert world.volumes_of(spec).isdisjoint(former)
    assert "Snapshots" in world.kubectl("get", "sandboxbackups", "-o", "wide")
    await eventually(lambda: not world.storage.volumes & former, within=30, every=0.2)
    await backups.end(order.id, timeout=PATIENCE)

    await backups.verify(spec.client, content=False, timeout=PATIENCE)
    assert (await backups.strays(spec.client, [backup], timeout=PATIENCE)).sizes == {}
    world.kubectl("delete", "volumesnapshots", "--all")  # somebody's mistake: the contents stay, and are found
    left = await backups.strays(spec.client, [], timeout=PATIENCE)
    assert set(left.sizes) == {backup}
    assert left.sizes[backup] > 0
    assert {one.handle for one in taken.volumes} == world.storage.stored
    proof = await backups.forget(spec.client, [backup], prune=True, timeout=PATIENCE)

    assert set(proof.snapshots) == {one.snapshot for one in taken.volumes}
    assert world.storage.stored == set()
    assert (await backups.strays(spec.client, [], timeout=PATIENCE)).sizes == {}
    assert world.kubectl("get", "volumesnapshots", "-o", "name") == ""


@REAL
async def test_what_the_driver_says_is_told_and_what_is_deleted_by_mistake_stays_in_the_storage(
    world: SnapshotWorld, csi: CsiStorage
) -> None:
    spec, backup = a_spec(), a_set()
    await world.backend.start(spec, an_incarnation(), timeout=PATIENCE)
    csi.trouble("the shelf is full")
    taking = asyncio.create_task(world.backups.take(backup, volumes_of(spec), timeout=PATIENCE, progress=ignored))
    await eventually(
        lambda: "the shelf is full" in world.kubectl("get", "sandboxbackups", "-o", "yaml"), within=60, every=0.3
    )
    csi.trouble("")
    taken = await taking
    assert {one.handle for one in taken.volumes} == csi.stored

    world.kubectl("delete", "volumesnapshots", "--all")
    await world.backups.verify(spec.client, content=False, timeout=PATIENCE)
    assert {one.handle for one in taken.volumes} == csi.stored
    proof = await world.backups.forget(spec.client, [backup], prune=True, timeout=PATIENCE)

    assert set(proof.snapshots) == {one.snapshot for one in taken.volumes}
    await eventually(lambda: not csi.stored, within=30, every=0.2)


@asynccontextmanager
async def a_snapshotting_stack(
    installation: ClusterInstallation, postgres_url: str
) -> AsyncIterator[tuple[ClusterStack, Client]]:
    """`serve` and gateway whose method is snapshots; nobody but the test asks for any."""
    async with a_cluster_stack(installation, postgres_url, start=False) as stack:
        stack.environment |= {"SANDBOXD_BACKUPS_METHOD": "snapshots", "SANDBOXD_BACKUPS_LOOK_SECONDS": "0"}
        await asyncio.gather(stack.start("gateway"), stack.start("serve"))
        async with stack.client() as client:
            yield stack, client


async def a_writing_sandbox(stack: ClusterStack, client: Client) -> tuple[sandbox_pb2.Sandbox, Any]:
    """One whose processes write into both volumes without a pause; and all else that is in them."""
    sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
    stack.inside(sandbox, "python3", "-c", FILL)
    stack.inside(sandbox, "sh", "-c", WRITE)
    return sandbox, seen(stack, sandbox)


def seen(stack: ClusterStack, sandbox: sandbox_pb2.Sandbox) -> Any:  # Any: JSON
    """All of both volumes but what is written without a pause."""
    found, links = json.loads(stack.inside(sandbox, "python3", "-c", LOOK))
    for what in found.values() if HOSTPATH else ():
        what[3:5] = [what[3] // 10**9]  # it keeps neither fractions of a second nor extended attributes
    return {name: what for name, what in found.items() if "ticks" not in name}, links


def ticks(stack: ClusterStack, sandbox: sandbox_pb2.Sandbox) -> list[int]:
    """The last number that was written into each volume."""
    words = stack.inside(sandbox, "sh", "-c", "for one in /workspace /home/gemini; do tail -n 2 $one/ticks; echo; done")
    return [int(part.split()[-1]) for part in words.strip().split("\n\n")]


@REAL
async def test_a_sandbox_stands_still_until_both_are_cut_and_comes_back_byte_for_byte(
    installation: ClusterInstallation, csi: CsiStorage, postgres_url: str
) -> None:
    async with a_snapshotting_stack(installation, postgres_url) as (stack, client):
        sandbox, before = await a_writing_sandbox(stack, client)
        with csi.holding():
            backup = await client.backups.begin(sandbox.name, freeze=backup_pb2.BACKUP_FREEZE_REQUIRED)
            await eventually(lambda: "backup.thawed" in stack.log("serve"), within=60, every=0.05)
            then = ticks(stack, sandbox)
            await eventually(lambda: ticks(stack, sandbox)[0] > then[0], within=20, every=0.3)
            cut = await client.backups.get(backup.name)
            assert HOSTPATH or cut.status == backup_pb2.BACKUP_STATUS_CREATING, "the storage has not made it ready"

        made = await followed(client, backup)

        assert (made.status, made.consistency) == (COMPLETE, backup_pb2.BACKUP_CONSISTENCY_QUIESCED), made.failure
        await client.terminate(sandbox.name)
        back = await client.restore(sandbox.name, backup=backup.name, timeout=PATIENCE.total_seconds())
        workspace, home = ticks(stack, back)
        assert workspace - home in (0, 1), "both are of one moment"
        assert workspace < then[0], "of the moment before it went on"
        assert seen(stack, back) == before

        for one in [one async for one in client.backups.list(sandbox.name)]:
            await client.backups.delete(one.name, timeout=PATIENCE.total_seconds())
        assert csi.stored == set()


@REAL
@pytest.mark.parametrize("who", ["operator", "serve"])
async def test_whoever_dies_while_it_stands_still_it_goes_on(
    installation: ClusterInstallation, csi: CsiStorage, postgres_url: str, who: str
) -> None:
    async with a_snapshotting_stack(installation, postgres_url) as (stack, client):
        sandbox, _ = await a_writing_sandbox(stack, client)
        required, soon = backup_pb2.BACKUP_FREEZE_REQUIRED, timedelta(seconds=60 if who == "serve" else 2)
        if who == "operator":
            assert installation.operator is not None
            installation.operator.kill()
            installation.operator.wait()
        else:
            await stack.restart("serve", failpoints="backup.after_freeze=exit9")

        backup = await client.backups.begin(sandbox.name, freeze=required, freeze_at_most=soon)
        if who == "serve":
            await stack.died("serve", within=60)
            await stack.start("serve")
        made = await followed(client, backup)

        if who == "operator":
            assert (made.status, made.failure.reason) == (FAILED, "BACKUP_NOT_QUIESCED")
            await asyncio.to_thread(installation.start_operator)
        else:
            assert (made.status, made.consistency) == (COMPLETE, backup_pb2.BACKUP_CONSISTENCY_QUIESCED), made.failure
        then = ticks(stack, sandbox)
        await eventually(lambda: ticks(stack, sandbox)[0] > then[0], within=30, every=0.3)
        assert (await client.get(sandbox.name)).state == sandbox_pb2.SANDBOX_STATE_ACTIVE


async def followed(client: Client, backup: backup_pb2.Backup) -> backup_pb2.Backup:
    """Follow it to its end."""
    async with asyncio.timeout(PATIENCE.total_seconds()):
        return [one async for one in client.backups.follow(backup.name)][-1]


@PLAYED
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
