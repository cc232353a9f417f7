"""Backups through the operator and its pods, on a cluster in memory: what may go wrong on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from sandboxd.backends.kubernetes.refusals import PlacementError
from sandboxd.backends.kubernetes.volume_backups import SETS_AT_ONCE, KubernetesVolumeBackups
from sandboxd.model.backup import BackupSetId, RestoreId, SnapshotId, Volume
from sandboxd.model.backup_errors import (
    BackupDamagedError,
    BackupPasswordLostError,
    BackupPasswordWrongError,
    BackupSnapshotNotFoundError,
    BackupStorageFullError,
    BackupStorageUnavailableError,
)
from sandboxd.model.cluster import Mode, sandbox_resource
from sandboxd.model.cluster_backup import ATTEMPTS, PROGRESS_EVENT
from sandboxd.model.errors import DeadlineError, ErrorKind, SandboxdError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.sandbox import TIER_RESOURCES, Tier
from sandboxd.volumes.ports import RestoreOrder, TakenVolumes, VolumesOf, VolumesProgress
from sandboxd.volumes.volume_errors import VolumesInUseError
from tests.backup_operator import a_backing_cluster, a_backup_operator, its_backups
from tests.backup_trees import PATIENCE, a_hard_tree, everything, without_sockets
from tests.eventually import eventually
from tests.fakes.backup_pods import BackupCluster
from tests.operator_world import INSTANCE, a_spec

ACME = ClientId("acme")
NAMESPACE = "client-acme"
PASSWORD = ("secrets", "own", "backup-password-client-acme")
_numbers = count(1)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[BackupCluster]:
    async with a_backing_cluster(tmp_path) as made:
        yield made


@pytest.fixture
async def with_restic(tmp_path: Path, restic: Path) -> AsyncIterator[BackupCluster]:
    async with a_backing_cluster(tmp_path, restic) as made:
        yield made


@pytest.fixture
def backups(cluster: BackupCluster) -> KubernetesVolumeBackups:
    return its_backups(cluster)


async def a_sandbox(cluster: BackupCluster, content: bytes = b"work") -> tuple[VolumesOf, Mapping[Volume, Path]]:
    of = VolumesOf(
        sandbox=SandboxId(f"sbx-{next(_numbers)}"),
        client=ACME,
        freelancer=FreelancerId("ada"),
        tier=Tier.BASIC,
        resources=TIER_RESOURCES[Tier.BASIC],
    )
    places = await cluster.give(ACME, of.sandbox)
    (places[Volume.WORKSPACE] / "file").write_bytes(content)
    return of, places


def a_set() -> BackupSetId:
    return BackupSetId(f"bak-{next(_numbers)}")


async def taken(backups: KubernetesVolumeBackups, backup: BackupSetId, of: VolumesOf) -> TakenVolumes:
    return await backups.take(backup, of, timeout=PATIENCE, progress=ignored)


def ignored(progress: VolumesProgress) -> None:
    pass


def an_order(made: TakenVolumes, into: VolumesOf) -> RestoreOrder:
    snapshots = {one.volume: one.snapshot for one in made.volumes}
    return RestoreOrder(id=RestoreId(f"rst-{next(_numbers)}"), into=into, snapshots=snapshots)


def pods(cluster: BackupCluster) -> list[str]:
    return [one["metadata"]["name"] for one in cluster.all("pods")]


async def test_with_restic_a_hard_tree_survives_lost_pods_and_lost_volumes_and_an_erasure_leaves_nothing_of_it(
    with_restic: BackupCluster,
) -> None:
    cluster, backups = with_restic, its_backups(with_restic)
    of, places = await a_sandbox(cluster)
    a_hard_tree(places[Volume.HOME])
    without_sockets(places[Volume.HOME])
    before = {volume: everything(place) for volume, place in places.items()}
    backup = a_set()
    cluster.held.clear()
    taking = asyncio.create_task(taken(backups, backup, of))
    await eventually(lambda: cluster.begun == [f"backup-{backup}-1"])
    await cluster.lose(f"backup-{backup}-1")
    cluster.held.set()
    made = await taking

    await cluster.take_away(ACME, of.sandbox)
    await backups.restore(an_order(made, of), timeout=PATIENCE, progress=ignored)

    assert {volume: everything(place) for volume, place in places.items()} == before
    claims = {one["metadata"]["name"] for one in cluster.all("persistentvolumeclaims")}
    assert claims == {f"home-{of.sandbox}-0", f"workspace-{of.sandbox}-0"}

    await backups.destroy(ACME, timeout=PATIENCE)

    assert PASSWORD not in cluster.objects
    data = cluster.directory / "storage" / "acme" / "data"
    assert [one for one in data.rglob("*") if one.is_file()] == []
    with pytest.raises(BackupPasswordLostError):
        await backups.restore(an_order(made, of), timeout=PATIENCE, progress=ignored)


async def test_a_pod_that_is_lost_is_followed_by_another_and_none_is_left(
    cluster: BackupCluster, backups: KubernetesVolumeBackups
) -> None:
    of, _ = await a_sandbox(cluster)
    backup = a_set()
    cluster.held.clear()
    taking = asyncio.create_task(taken(backups, backup, of))
    for attempt in (1, 2):
        name = f"backup-{backup}-{attempt}"
        await eventually(lambda: name in cluster.begun)  # noqa: B023
        await cluster.lose(name)
    cluster.held.set()
    made = await taking

    assert cluster.begun == [f"backup-{backup}-{attempt}" for attempt in (1, 2, 3)]
    assert len(made.volumes) == 2
    await eventually(lambda: pods(cluster) == [])


async def test_work_whose_pods_are_all_lost_is_given_up_and_made_anew_for_who_asks_again(
    cluster: BackupCluster, backups: KubernetesVolumeBackups
) -> None:
    of, _ = await a_sandbox(cluster)
    backup = a_set()
    cluster.held.clear()
    taking = asyncio.create_task(taken(backups, backup, of))
    for attempt in range(1, ATTEMPTS + 1):
        await eventually(lambda: len(cluster.begun) == attempt)  # noqa: B023
        await cluster.lose(cluster.begun[-1])
    with pytest.raises(PlacementError, match=f"{ATTEMPTS} pods of it were lost"):
        await taking
    cluster.held.set()

    made = await taken(backups, backup, of)

    assert len(made.volumes) == 2


async def test_a_service_that_dies_is_followed_by_one_that_reads_what_came_of_it(
    cluster: BackupCluster, backups: KubernetesVolumeBackups
) -> None:
    of, _ = await a_sandbox(cluster)
    backup = a_set()
    cluster.held.clear()
    taking = asyncio.create_task(taken(backups, backup, of))
    await eventually(lambda: len(cluster.begun) == 1)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    cluster.held.set()

    made = await taken(its_backups(cluster), backup, of)
    again = await taken(its_backups(cluster), backup, of)

    assert made == again
    assert len(cluster.begun) == 1


async def test_an_operator_that_dies_while_a_pod_works_is_followed_by_one_that_reads_its_result(tmp_path: Path) -> None:
    cluster = BackupCluster(tmp_path)
    await cluster.furnish()
    async with cluster.running():
        of, _ = await a_sandbox(cluster)
        async with a_backup_operator(cluster):
            cluster.held.clear()
            taking = asyncio.create_task(taken(its_backups(cluster), a_set(), of))
            await eventually(lambda: len(cluster.begun) == 1)
        cluster.held.set()
        async with a_backup_operator(cluster):
            made = await taking

    assert len(cluster.begun) == 1
    assert {one.volume for one in made.volumes} == set(Volume)


@pytest.mark.parametrize(
    "trouble", [BackupStorageUnavailableError("away"), BackupDamagedError("damaged"), BackupStorageFullError("full")]
)
async def test_what_the_worker_meets_is_told_by_its_word_and_the_same_name_is_tried_again(
    cluster: BackupCluster, backups: KubernetesVolumeBackups, trouble: SandboxdError
) -> None:
    of, _ = await a_sandbox(cluster)
    await taken(backups, a_set(), of)
    (repository,) = cluster.repositories.values()
    repository.trouble = trouble
    backup = a_set()

    with pytest.raises(type(trouble), match=trouble.message):
        await taken(backups, backup, of)
    repository.trouble = None
    made = await taken(backups, backup, of)

    assert len(made.volumes) == 2


async def test_a_snapshot_that_is_not_there_leaves_the_volumes_as_they_are(
    cluster: BackupCluster, backups: KubernetesVolumeBackups
) -> None:
    of, places = await a_sandbox(cluster)
    made = await taken(backups, a_set(), of)
    order = an_order(made, of)
    wrong = RestoreOrder(id=order.id, into=of, snapshots={Volume.WORKSPACE: SnapshotId("0" * 64)})

    with pytest.raises(BackupSnapshotNotFoundError):
        await backups.restore(wrong, timeout=PATIENCE, progress=ignored)

    assert (places[Volume.WORKSPACE] / "file").read_bytes() == b"work"


async def test_what_runs_is_not_restored(cluster: BackupCluster, backups: KubernetesVolumeBackups) -> None:
    of, _ = await a_sandbox(cluster)
    made = await taken(backups, a_set(), of)
    body = sandbox_resource(of.sandbox, a_spec(mode=Mode.RUNNING), namespace=NAMESPACE, instance=INSTANCE)
    await cluster.put("sandboxes", {**body, "metadata": {**body["metadata"], "uid": "uid", "generation": 1}})

    with pytest.raises(VolumesInUseError):
        await backups.restore(an_order(made, of), timeout=PATIENCE, progress=ignored)

    assert len(cluster.begun) == 1


async def test_work_that_is_ended_is_gone_with_its_pods(
    cluster: BackupCluster, backups: KubernetesVolumeBackups
) -> None:
    of, _ = await a_sandbox(cluster)
    backup = a_set()
    cluster.held.clear()
    taking = asyncio.create_task(taken(backups, backup, of))
    await eventually(lambda: len(cluster.begun) == 1)

    await backups.end(backup, timeout=PATIENCE)

    assert pods(cluster) == []
    assert cluster.all("sandboxbackups") == []
    with pytest.raises(PlacementError, match="was removed"):
        await taking
    await backups.end(a_set(), timeout=PATIENCE)


async def test_the_keys_are_where_they_belong_and_nowhere_else(
    cluster: BackupCluster, backups: KubernetesVolumeBackups
) -> None:
    of, _ = await a_sandbox(cluster)
    cluster.held.clear()
    taking = asyncio.create_task(taken(backups, a_set(), of))
    await eventually(lambda: len(cluster.begun) == 1)

    password = cluster.objects[PASSWORD]["data"]["password"]
    holders = {key for key, obj in cluster.objects.items() if password in json.dumps(obj)}

    (work,) = cluster.all("sandboxbackups")
    assert holders == {PASSWORD, ("secrets", NAMESPACE, work["metadata"]["name"])}
    cluster.held.set()
    await taking
    await backups.end(BackupSetId(work["spec"]["backup"]), timeout=PATIENCE)
    assert [key for key in cluster.objects if key[0] == "secrets"] == [PASSWORD]


async def test_a_client_is_erased_twice(cluster: BackupCluster, backups: KubernetesVolumeBackups) -> None:
    of, _ = await a_sandbox(cluster)
    await taken(backups, a_set(), of)

    for _ in range(2):
        await backups.destroy(ACME, timeout=PATIENCE)

    assert PASSWORD not in cluster.objects
    assert [one.snapshots for one in cluster.repositories.values()] == [{}]


async def test_many_sets_are_forgotten_in_portions(cluster: BackupCluster, backups: KubernetesVolumeBackups) -> None:
    of, _ = await a_sandbox(cluster)
    sets = [a_set(), a_set()]
    made = [await taken(backups, one, of) for one in sets]
    unknown = [a_set() for _ in range(SETS_AT_ONCE)]
    cluster.begun.clear()

    gone = await backups.forget(ACME, [sets[0], *unknown, sets[1]], prune=True, timeout=PATIENCE)

    assert set(gone.snapshots) == {volume.snapshot for one in made for volume in one.volumes}
    assert gone.left == 0
    assert len(cluster.begun) == 2
    left = {one["metadata"]["name"] for one in cluster.all("sandboxbackups")}
    assert left == {f"backup-{one}" for one in sets}


async def test_a_client_without_a_repository_has_nothing_to_look_after(
    cluster: BackupCluster, backups: KubernetesVolumeBackups
) -> None:
    await cluster.give(ACME, SandboxId("sbx-any"))

    await backups.verify(ACME, content=True, timeout=PATIENCE)
    gone = await backups.forget(ACME, [a_set()], prune=True, timeout=PATIENCE)

    assert (list(gone.snapshots), gone.left) == ([], 0)
    assert cluster.begun == []
    assert PASSWORD not in cluster.objects


async def test_too_little_time_makes_no_work(cluster: BackupCluster, backups: KubernetesVolumeBackups) -> None:
    of, _ = await a_sandbox(cluster)

    with pytest.raises(DeadlineError, match="no time left"):
        await backups.take(a_set(), of, timeout=timedelta(seconds=1), progress=ignored)

    assert cluster.all("sandboxbackups") == []


async def test_progress_is_told_on_the_way_across_a_restart_of_the_operator_and_of_the_service(tmp_path: Path) -> None:
    cluster = BackupCluster(tmp_path)
    await cluster.furnish()
    backup, seen = a_set(), list[VolumesProgress]()
    async with cluster.running():
        of, _ = await a_sandbox(cluster)
        cluster.held.clear()
        pod = f"backup-{backup}-1"

        def far(size: int, *, volume: str = "home") -> None:
            said = {"volume": volume, "files": 1, "totalFiles": 2, "bytes": size, "totalBytes": 100}
            cluster.logs.setdefault(pod, []).append(json.dumps({"event": PROGRESS_EVENT, **said}) + "\n")

        def told() -> list[tuple[str, int]]:
            return [(one.volume.value, one.trees.bytes) for one in seen]

        async with a_backup_operator(cluster):
            taking = asyncio.create_task(its_backups(cluster).take(backup, of, timeout=PATIENCE, progress=seen.append))
            await eventually(lambda: pod in cluster.begun)
            far(10)
            await eventually(lambda: told() == [("home", 10)])
        far(40)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        seen.clear()

        async with a_backup_operator(cluster):
            taking = asyncio.create_task(its_backups(cluster).take(backup, of, timeout=PATIENCE, progress=seen.append))
            await eventually(lambda: told()[-1:] == [("home", 40)])
            assert set(told()) <= {("home", 10), ("home", 40)}
            cluster.held.set()
            await taking

    assert told()[-1] == ("workspace", 4)
    assert all(one.trees.bytes <= one.trees.total_bytes for one in seen)


async def test_a_lost_password_is_told_and_no_other_one_takes_its_place_until_a_copy_is_put_back(
    with_restic: BackupCluster,
) -> None:
    cluster, backups = with_restic, its_backups(with_restic)
    of, places = await a_sandbox(cluster)
    made = await taken(backups, a_set(), of)
    copy = cluster.objects[PASSWORD]
    await cluster.drop(*PASSWORD)
    cluster.begun.clear()

    with pytest.raises(BackupPasswordLostError, match="Put it back") as restored:
        await backups.restore(an_order(made, of), timeout=PATIENCE, progress=ignored)
    assert cluster.begun == []
    with pytest.raises(BackupPasswordLostError, match="Put it back"):
        await taken(backups, a_set(), of)

    assert (restored.value.kind, restored.value.metadata["secret"]) == (ErrorKind.WRONG_STATE, PASSWORD[2])
    assert PASSWORD not in cluster.objects
    await cluster.put("secrets", copy)
    (places[Volume.WORKSPACE] / "file").write_bytes(b"changed")
    await backups.restore(an_order(made, of), timeout=PATIENCE, progress=ignored)
    assert (places[Volume.WORKSPACE] / "file").read_bytes() == b"work"


async def test_a_password_that_was_not_made_for_the_work_is_never_taken_back(
    cluster: BackupCluster, backups: KubernetesVolumeBackups
) -> None:
    of, _ = await a_sandbox(cluster)
    await taken(backups, a_set(), of)
    (repository,) = cluster.repositories.values()
    repository.trouble = BackupPasswordWrongError("It does not open.")

    with pytest.raises(BackupPasswordWrongError):
        await taken(backups, a_set(), of)

    assert PASSWORD in cluster.objects
