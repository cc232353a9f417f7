"""Backups by snapshots through the operator, on a cluster in memory with a played storage: what may go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from sandboxd.backends.kubernetes.abandoned import ClusterObjects
from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.refusals import PlacementError
from sandboxd.backends.kubernetes.volume_backups import KubernetesVolumeBackups
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.model.abandoned import AbandonedReason
from sandboxd.model.backup import BackupMethod, BackupSetId, RestoreId, SnapshotId, Volume
from sandboxd.model.backup_errors import (
    BackupDamagedError,
    BackupSnapshotNotFoundError,
    BackupSnapshotsUnsupportedError,
)
from sandboxd.model.cluster import claims_of, pod_of
from sandboxd.model.cluster_backup import ATTEMPTS
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.sandbox import TIER_RESOURCES, Tier
from sandboxd.operator.snapshot_shape import RESTORE
from sandboxd.volumes.ports import RestoreOrder, TakenVolumes, VolumesOf, VolumesProgress
from tests.backup_operator import a_backup_operator, a_snapshotting_cluster, its_backups
from tests.backup_trees import PATIENCE
from tests.eventually import eventually
from tests.fakes.controllers import MortalApi
from tests.fakes.snapshot_cluster import SnapshotCluster
from tests.operator_world import INSTANCE
from tests.snapshot_driver import CORE, SNAPSHOTS

ACME = ClientId("acme")
NAMESPACE = "client-acme"
_numbers = count(1)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[SnapshotCluster]:
    async with a_snapshotting_cluster(tmp_path) as made:
        yield made


@pytest.fixture
def backups(cluster: SnapshotCluster) -> KubernetesVolumeBackups:
    return its_backups(cluster, method=BackupMethod.SNAPSHOTS)


async def a_sandbox(cluster: SnapshotCluster, content: str = "before") -> VolumesOf:
    of = VolumesOf(
        sandbox=SandboxId(f"sbx-{next(_numbers)}"),
        client=ACME,
        freelancer=FreelancerId("ada"),
        tier=Tier.BASIC,
        resources=TIER_RESOURCES[Tier.BASIC],
    )
    await cluster.give(ACME, of.sandbox)
    write(cluster, of, content)
    return of


def write(cluster: SnapshotCluster, of: VolumesOf, content: str) -> None:
    for place in cluster.places(of.sandbox).values():
        (place / "file").write_text(content)


def read(cluster: SnapshotCluster, of: VolumesOf) -> set[str]:
    places = cluster.places(of.sandbox)
    assert len(places) == 2
    return {(place / "file").read_text() for place in places.values()}


def a_set() -> BackupSetId:
    return BackupSetId(f"bak-{next(_numbers)}")


async def taken(backups: KubernetesVolumeBackups, backup: BackupSetId, of: VolumesOf) -> TakenVolumes:
    return await backups.take(backup, of, timeout=PATIENCE, progress=ignored)


async def restored(backups: KubernetesVolumeBackups, order: RestoreOrder) -> None:
    await backups.restore(order, timeout=PATIENCE, progress=ignored)


def ignored(progress: VolumesProgress) -> None:
    pass


def an_order(made: TakenVolumes, into: VolumesOf) -> RestoreOrder:
    snapshots = {one.volume: one.snapshot for one in made.volumes}
    return RestoreOrder(id=RestoreId(f"rst-{next(_numbers)}"), into=into, snapshots=snapshots)


def volumes(cluster: SnapshotCluster) -> dict[str, tuple[str, str, bool]]:
    """Of each PersistentVolume: phase, what happens without its claim, and whether a restore holds it."""
    return {
        one["metadata"]["name"]: (
            one["status"]["phase"],
            one["spec"]["persistentVolumeReclaimPolicy"],
            RESTORE in one["metadata"].get("labels", {}),
        )
        for one in cluster.all("persistentvolumes")
        if "status" in one
    }


def said(cluster: SnapshotCluster) -> str:
    return json.dumps([one.get("status", {}) for one in cluster.all("sandboxbackups")])


async def test_a_cluster_that_knows_no_snapshots_says_what_to_install(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of = await a_sandbox(cluster)
    cluster.knows_snapshots = False

    with pytest.raises(BackupSnapshotsUnsupportedError, match="external-snapshotter"):
        await taken(backups, a_set(), of)

    assert read(cluster, of) == {"before"}


async def test_what_a_sandbox_wrote_is_flushed_where_its_pod_is_before_anything_is_cut(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of = await a_sandbox(cluster)
    pod = {"name": pod_of(of.sandbox), "namespace": NAMESPACE, "uid": "pod"}
    labels = {"sandboxd.dev/instance": INSTANCE}
    await cluster.put("pods", {"metadata": {**pod, "labels": labels}, "spec": {"nodeName": "far"}})
    backup = a_set()
    cluster.held.clear()
    taking = asyncio.create_task(taken(backups, backup, of))
    await eventually(lambda: cluster.begun == [f"backup-{backup}-1"])

    (flusher,) = [one for one in cluster.all("pods") if one["metadata"]["name"] != pod_of(of.sandbox)]
    assert '"far"' in json.dumps(flusher["spec"]["affinity"])
    assert cluster.driver.cut == []
    cluster.held.set()
    await taking

    assert sorted(cluster.driver.cut) == [f"{backup}-home", f"{backup}-workspace"]
    await eventually(lambda: cluster.names("pods") == [pod_of(of.sandbox)])


async def test_a_stopped_sandbox_needs_no_pod_and_its_set_says_what_the_storage_calls_it(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of = await a_sandbox(cluster)

    made = await taken(backups, a_set(), of)

    assert cluster.begun == []
    assert {one.driver for one in made.volumes} == {cluster.driver.name}
    assert {one.handle for one in made.volumes} == cluster.driver.stored
    assert {one.bytes for one in made.volumes} == {1 << 20}


async def test_what_the_storage_says_is_told_and_it_is_tried_until_it_works(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of = await a_sandbox(cluster)
    cluster.driver.trouble = "no room for snapshots"
    taking = asyncio.create_task(taken(backups, a_set(), of))

    await eventually(lambda: "no room for snapshots" in said(cluster))
    assert '"reason": "SnapshotFailed"' in said(cluster)
    cluster.driver.trouble = ""

    assert len((await taking).volumes) == 2


async def test_that_both_are_cut_is_told_before_they_are_ready_and_no_others_take_their_place_then(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of = await a_sandbox(cluster)
    cluster.driver.slow = True
    for ready in (True, False):
        backup, heard = a_set(), list[VolumesProgress]()
        taking = asyncio.create_task(backups.take(backup, of, timeout=PATIENCE, progress=heard.append))
        await eventually(lambda: any(one.cut for one in heard))  # noqa: B023
        assert sorted(one for one in cluster.driver.cut if backup in one) == [f"{backup}-home", f"{backup}-workspace"]
        assert not taking.done()
        if ready:
            cluster.driver.slow = False
            assert len((await taking).volumes) == 2
            cluster.driver.slow = True
        else:
            await cluster.delete(f"{SNAPSHOTS}/namespaces/{NAMESPACE}/volumesnapshots/{backup}-home")
            with pytest.raises(PlacementError, match="removed after it was cut"):
                await taking


async def test_what_other_readings_of_a_set_have_cut_is_in_the_storage_no_more(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of, backup, made = await a_sandbox(cluster), a_set(), None
    other = await taken(backups, a_set(), of)
    for reading in (2, 4):
        made = await backups.take(backup, of, timeout=PATIENCE, progress=ignored, reading=reading)
        await backups.end(backup, timeout=PATIENCE)

    assert made is not None
    handles = {one.handle for one in (*made.volumes, *other.volumes)}
    await eventually(lambda: cluster.driver.stored == handles)


async def test_half_a_set_that_broke_off_is_taken_anew(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of, backup = await a_sandbox(cluster), a_set()
    first = await taken(backups, backup, of)
    await backups.end(backup, timeout=PATIENCE)
    await cluster.delete(f"{SNAPSHOTS}/namespaces/{NAMESPACE}/volumesnapshots/{backup}-home")
    write(cluster, of, "later")

    again = await taken(backups, backup, of)
    write(cluster, of, "broken")
    await restored(backups, an_order(again, of))

    assert read(cluster, of) == {"later"}
    assert {one.handle for one in again.volumes}.isdisjoint({one.handle for one in first.volumes})


async def test_whatever_its_class_says_a_snapshot_outlives_its_object_until_its_set_is_forgotten(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of, backup = await a_sandbox(cluster), a_set()
    made = await taken(backups, backup, of)
    name = f"{backup}-home"
    await cluster.delete(f"{SNAPSHOTS}/namespaces/{NAMESPACE}/volumesnapshots/{name}")
    await asyncio.sleep(0.1)  # for the storage to look at it, some times

    assert cluster.driver.stored == {one.handle for one in made.volumes}
    with pytest.raises(BackupSnapshotNotFoundError):
        await restored(backups, an_order(made, of))

    proof = await backups.forget(ACME, [backup], prune=True, timeout=PATIENCE)

    assert set(proof.snapshots) == {one.snapshot for one in made.volumes}
    assert proof.left == 0
    assert cluster.driver.stored == set()
    assert cluster.names("volumesnapshotcontents") == cluster.names("volumesnapshots") == []


async def test_what_was_there_is_kept_until_what_comes_back_is_mounted(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of = await a_sandbox(cluster)
    made = await taken(backups, a_set(), of)
    write(cluster, of, "now")
    before = set(volumes(cluster))
    cluster.held.clear()
    order = an_order(made, of)
    restoring = asyncio.create_task(restored(backups, order))
    await eventually(lambda: cluster.begun == [f"backup-{order.id}-1"])

    assert {volumes(cluster)[name] for name in before} == {("Released", "Retain", True)}
    assert {(cluster.driver.place(name) / "file").read_text() for name in before} == {"now"}
    cluster.held.set()
    await restoring
    await eventually(lambda: not before & set(volumes(cluster)))

    assert read(cluster, of) == {"before"}
    assert set(volumes(cluster).values()) == {("Bound", "Delete", False)}
    assert cluster.names("sandboxbackups")[-1] == f"backup-{order.id}"
    assert all("finalizers" not in one["metadata"] for one in cluster.all("sandboxbackups"))


async def test_a_restore_that_is_ended_halfway_puts_back_what_was_there(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of = await a_sandbox(cluster)
    made = await taken(backups, a_set(), of)
    write(cluster, of, "now")
    before = set(volumes(cluster))
    cluster.driver.stuck = True
    order = an_order(made, of)
    restoring = asyncio.create_task(restored(backups, order))
    await eventually(lambda: {one[0] for one in volumes(cluster).values()} == {"Released"})

    await backups.end(order.id, timeout=PATIENCE)

    assert read(cluster, of) == {"now"}
    assert {name: volumes(cluster)[name] for name in before} == dict.fromkeys(before, ("Bound", "Delete", False))
    with pytest.raises(PlacementError, match="was removed"):
        await restoring
    cluster.driver.stuck = False
    await restored(backups, order)
    assert read(cluster, of) == {"before"}


async def test_a_restore_whose_pods_are_all_lost_puts_back_what_was_there(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of = await a_sandbox(cluster)
    made = await taken(backups, a_set(), of)
    write(cluster, of, "now")
    cluster.held.clear()
    restoring = asyncio.create_task(restored(backups, an_order(made, of)))
    for attempt in range(1, ATTEMPTS + 1):
        await eventually(lambda: len(cluster.begun) == attempt)  # noqa: B023
        await cluster.lose(cluster.begun[-1])

    with pytest.raises(PlacementError, match=f"{ATTEMPTS} pods of it were lost"):
        await restoring

    assert read(cluster, of) == {"now"}
    await eventually(lambda: set(volumes(cluster).values()) == {("Bound", "Delete", False)})


async def test_nothing_is_touched_for_a_snapshot_that_is_not_there_or_is_another_one(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of, backup = await a_sandbox(cluster), a_set()
    made = await taken(backups, backup, of)
    before = volumes(cluster)
    order = an_order(made, of)
    missing = replace(order, snapshots={**order.snapshots, Volume.HOME: SnapshotId("bak-none-home")})

    with pytest.raises(BackupSnapshotNotFoundError):
        await restored(backups, missing)
    place = f"{SNAPSHOTS}/namespaces/{NAMESPACE}/volumesnapshots/{backup}-home"
    await cluster.patch(place, {"metadata": {"annotations": {"sandboxd.dev/handle": "snappy/other"}}})
    with pytest.raises(BackupDamagedError, match="another snapshot"):
        await restored(backups, order)
    with pytest.raises(BackupDamagedError, match="another snapshot"):
        await backups.verify(ACME, content=False, timeout=PATIENCE)

    assert volumes(cluster) == before
    assert cluster.begun == []


async def test_a_verification_finds_what_the_storage_has_lost(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of = await a_sandbox(cluster)
    await taken(backups, a_set(), of)
    await backups.verify(ACME, content=True, timeout=PATIENCE)
    gone = cluster.names("volumesnapshotcontents")[0]
    await cluster.delete(f"{SNAPSHOTS}/volumesnapshotcontents/{gone}")
    await eventually(lambda: gone not in cluster.names("volumesnapshotcontents"))

    with pytest.raises(BackupDamagedError, match="no content"):
        await backups.verify(ACME, content=False, timeout=PATIENCE)


async def test_an_erasure_leaves_nothing_of_a_client_and_all_of_others(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of = await a_sandbox(cluster)
    stranger = replace(await a_sandbox(cluster), client=ClientId("other"), sandbox=SandboxId("sbx-other"))
    await cluster.give(stranger.client, stranger.sandbox)
    write(cluster, stranger, "theirs")
    await taken(backups, a_set(), of)
    theirs = await taken(backups, a_set(), stranger)

    for _ in range(2):
        await backups.destroy(ACME, timeout=PATIENCE)

    assert cluster.driver.stored == {one.handle for one in theirs.volumes}
    await restored(backups, an_order(theirs, stranger))
    assert read(cluster, stranger) == {"theirs"}


async def test_a_claim_of_somebody_else_is_left_alone_and_what_was_there_is_kept(
    cluster: SnapshotCluster, backups: KubernetesVolumeBackups
) -> None:
    of = await a_sandbox(cluster)
    made = await taken(backups, a_set(), of)
    write(cluster, of, "now")
    before = set(volumes(cluster))
    home = claims_of(of.sandbox)["home"]
    delete = cluster.delete

    async def grab(path: str, **given: object) -> dict[str, object]:
        answer = await delete(path, **given)  # type: ignore[arg-type]
        if path.endswith(home):
            body = {"kind": "PersistentVolumeClaim", "metadata": {"name": home}, "spec": {"volumeName": "theirs"}}
            await cluster.create(f"{CORE}/namespaces/{NAMESPACE}/persistentvolumeclaims", body)
        return answer

    cluster.delete = grab  # type: ignore[method-assign]
    order = an_order(made, of)
    with pytest.raises(PlacementError):
        await restored(backups, order)

    assert before <= set(volumes(cluster)), "nothing of it is lost"
    assert {(cluster.driver.place(name) / "file").read_text() for name in before} == {"now"}
    (left,) = [name for name in before if volumes(cluster)[name] == ("Released", "Retain", False)]
    installation = Installation(instance=INSTANCE, namespace_prefix="client-", template="default")
    looked = await ClusterObjects(cluster, installation=installation, clock=SystemClock()).look(timeout=PATIENCE)
    assert [(one.name, one.said) for one in looked if one.name in before] == [(left, AbandonedReason.RETAINED)]

    await backups.destroy(ACME, timeout=PATIENCE)
    await eventually(lambda: left not in volumes(cluster))


async def test_an_operator_that_dies_at_any_write_of_a_restore_is_followed_by_one_that_ends_it(tmp_path: Path) -> None:
    writes, struck = 0, True
    while struck:
        writes += 1
        cluster = SnapshotCluster(tmp_path / str(writes))
        await cluster.furnish()
        async with cluster.running():
            async with a_backup_operator(cluster):
                of = await a_sandbox(cluster)
                backups = its_backups(cluster, method=BackupMethod.SNAPSHOTS)
                made = await taken(backups, a_set(), of)
                write(cluster, of, "now")
            mortal = MortalApi(cluster, dies_at=writes, done=writes % 2 == 0)
            restoring = asyncio.create_task(restored(backups, an_order(made, of)))
            async with a_backup_operator(cluster, api=mortal):
                await eventually(lambda: mortal.struck or restoring.done())  # noqa: B023
            struck = mortal.struck
            async with a_backup_operator(cluster):
                await restoring
                await eventually(lambda: set(volumes(cluster).values()) == {("Bound", "Delete", False)})  # noqa: B023
            assert read(cluster, of) == {"before"}, writes
    assert writes > 6, "claims, volumes, a pod, a status"


async def test_an_operator_that_dies_at_any_write_of_a_set_is_followed_by_one_that_ends_it(tmp_path: Path) -> None:
    writes, struck = 0, True
    while struck:
        writes += 1
        cluster = SnapshotCluster(tmp_path / str(writes))
        await cluster.furnish()
        async with cluster.running():
            backups, backup = its_backups(cluster, method=BackupMethod.SNAPSHOTS), a_set()
            mortal = MortalApi(cluster, dies_at=writes, done=writes % 2 == 0)
            async with a_backup_operator(cluster):
                of = await a_sandbox(cluster)
            taking = asyncio.create_task(taken(backups, backup, of))
            async with a_backup_operator(cluster, api=mortal):
                await eventually(lambda: mortal.struck or taking.done())  # noqa: B023
            struck = mortal.struck
            async with a_backup_operator(cluster):
                made = await taking
            assert {one.handle for one in made.volumes} <= cluster.driver.stored, writes
            contents = cluster.all("volumesnapshotcontents")
            assert {one["spec"]["deletionPolicy"] for one in contents} == {"Retain"}, writes
    assert writes > 5, "two snapshots, two contents, a status"
