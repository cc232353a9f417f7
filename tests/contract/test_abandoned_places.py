"""What places tell of what is there, and what they remove: directories of this machine, and objects of a cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.backends.kubernetes.abandoned import ClusterObjects
from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.local.abandoned import LocalDirectories
from sandboxd.backends.local.layout import Layout
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.manager.abandoned_ports import AbandonedPlace
from sandboxd.model.abandoned import AbandonedKind, AbandonedReason, Thing
from sandboxd.model.cluster import sandbox_resource
from sandboxd.model.errors import ConflictError
from sandboxd.model.ids import ClientId, SandboxId
from tests.fakes.backup_pods import BackupCluster
from tests.operator_world import INSTANCE, a_spec

SOON = timedelta(seconds=10)
ONE, OTHER = SandboxId(f"sbx-{1:026}"), SandboxId(f"sbx-{2:026}")
K = AbandonedKind


async def seen(place: AbandonedPlace) -> dict[tuple[AbandonedKind, str], Thing]:
    return {(one.kind, one.name): one for one in await place.look(timeout=SOON)}


async def test_directories_of_sandboxes_and_what_broken_work_left_are_told_and_others_are_not(tmp_path: Path) -> None:
    layout, place = Layout(data=tmp_path), LocalDirectories(data=tmp_path)
    layout.sandbox(ONE).make()
    left = layout.sandbox(ONE).workspace / ".sandboxd-restore-rst-1"
    left.mkdir()
    layout.sandbox(OTHER).make()
    layout.keep(OTHER)
    leaving = layout.kept / ".leaving-sbx-3-0"
    leaving.mkdir()
    (layout.kept / "somebody's").mkdir()

    found = await seen(place)

    assert {(kind, name, one.sandbox) for (kind, name), one in found.items()} == {
        (K.VOLUME, str(layout.sandboxes / ONE), ONE),
        (K.VOLUME, str(layout.kept / OTHER), OTHER),
        (K.LEFTOVER, str(left), ONE),
        (K.LEFTOVER, str(leaving), None),
    }
    await place.remove(found[K.VOLUME, str(layout.kept / OTHER)], timeout=SOON)
    await place.remove(found[K.LEFTOVER, str(left)], timeout=SOON)
    assert {name for _, name in await seen(place)} == {str(layout.sandboxes / ONE), str(leaving)}


async def test_a_directory_that_was_made_in_its_place_since_is_another_one_and_stays(tmp_path: Path) -> None:
    layout, place = Layout(data=tmp_path), LocalDirectories(data=tmp_path)
    layout.sandbox(ONE).make()
    layout.keep(ONE)
    (thing,) = await place.look(timeout=SOON)
    (layout.kept / ONE).rename(tmp_path / "aside")
    (layout.kept / ONE).mkdir()

    await place.remove(thing, timeout=SOON)

    assert (layout.kept / ONE).is_dir()


@pytest.fixture
async def cluster(tmp_path: Path) -> BackupCluster:
    made = BackupCluster(tmp_path)
    await made.furnish()
    await made.give(ClientId("acme"), ONE)
    return made


def its_place(cluster: BackupCluster) -> ClusterObjects:
    installation = Installation(instance=INSTANCE, namespace_prefix="client-", template="default")
    return ClusterObjects(cluster, installation=installation, clock=SystemClock())


async def test_claims_volumes_namespaces_and_work_of_ours_are_told_and_others_are_not(cluster: BackupCluster) -> None:
    for number, reference in enumerate(("client-acme/home-sbx-9", "theirs/data-sbx-9", "client-acme/other")):
        namespace, name = reference.split("/")
        spec = {"claimRef": {"namespace": namespace, "name": name}, "capacity": {"storage": "2Gi"}}
        volume = {"metadata": {"name": f"pv-{number}", "uid": f"u{number}"}, "spec": spec}
        await cluster.put("persistentvolumes", {**volume, "status": {"phase": "Released"}})
    await cluster.put("persistentvolumeclaims", {"metadata": {"name": "x", "namespace": "theirs", "uid": "x"}})
    for name, born in (("backup-old", "2020-01-01T00:00:00Z"), ("backup-new", "2999-01-01T00:00:00Z")):
        labels = {"sandboxd.dev/instance": INSTANCE}
        meta = {"name": name, "namespace": "client-acme", "uid": name, "labels": labels, "creationTimestamp": born}
        await cluster.put("sandboxbackups", {"metadata": meta, "spec": {"deadlineSeconds": 60}})

    found = await seen(its_place(cluster))

    assert {kind for kind, name in found if name.startswith("client-acme/home") or name == "pv-0"} == {K.VOLUME}
    assert {name for kind, name in found if kind is K.VOLUME and name.startswith("pv-")} == {"pv-0"}
    assert (found[K.VOLUME, "pv-0"].said, found[K.VOLUME, "pv-0"].removable) == (AbandonedReason.RETAINED, False)
    assert found[K.VOLUME, "pv-0"].size_bytes == 2 << 30
    assert {one.sandbox for (kind, name), one in found.items() if kind is K.VOLUME and "/" in name} == {ONE}
    assert (found[K.NAMESPACE, "client-acme"].client, found[K.NAMESPACE, "client-acme"].removable) == ("acme", False)
    assert [name for kind, name in found if kind is K.WORK] == ["client-acme/backup-old"]


async def test_a_namespace_goes_when_nothing_is_in_it_whoever_made_that(cluster: BackupCluster) -> None:
    place = its_place(cluster)
    full = (await seen(place))[K.NAMESPACE, "client-acme"]
    await cluster.take_away(ClientId("acme"), ONE)
    empty = (await seen(place))[K.NAMESPACE, "client-acme"]
    pod = {"metadata": {"name": "somebody's", "namespace": "client-acme", "uid": "p"}}
    await cluster.put("pods", pod)

    with pytest.raises(ConflictError, match="not empty: pods somebody's"):
        await place.remove(empty, timeout=SOON)
    await cluster.drop("pods", "client-acme", "somebody's")
    await place.remove(replace(empty, identity="another"), timeout=SOON)
    kept = [one["metadata"]["name"] for one in cluster.all("namespaces")]
    for _ in range(2):
        await place.remove(empty, timeout=SOON)

    assert (full.removable, empty.removable, empty.size_bytes) == (False, True, 0)
    assert (kept, [one["metadata"]["name"] for one in cluster.all("namespaces")]) == (["client-acme", "own"], ["own"])


async def test_a_volume_that_gave_way_to_a_restore_is_told_with_its_sandbox_and_not_removed(
    cluster: BackupCluster,
) -> None:
    spec = {"claimRef": {"namespace": "client-acme", "name": f"home-{ONE}"}, "capacity": {"storage": "2Gi"}}
    meta = {"name": "pv-left", "uid": "u", "labels": {"sandboxd.dev/restore": "backup-rst-1"}}
    await cluster.put("persistentvolumes", {"metadata": meta, "spec": spec, "status": {"phase": "Released"}})
    place = its_place(cluster)

    left = (await seen(place))[K.LEFTOVER, "pv-left"]

    assert (left.sandbox, left.said, left.size_bytes) == (ONE, AbandonedReason.RETAINED, 2 << 30)
    with pytest.raises(ConflictError):
        await place.remove(left, timeout=SOON)


async def test_a_claim_goes_unless_its_sandbox_is_in_its_place(cluster: BackupCluster) -> None:
    place = its_place(cluster)
    claims = [one for one in await place.look(timeout=SOON) if one.kind is K.VOLUME]
    made = sandbox_resource(ONE, a_spec(), namespace="client-acme", instance=INSTANCE)
    await cluster.put("sandboxes", {**made, "metadata": {**made["metadata"], "uid": "placed"}})

    with pytest.raises(ConflictError):
        await place.remove(claims[0], timeout=SOON)
    await cluster.drop("sandboxes", "client-acme", ONE)
    for claim in claims:
        await place.remove(claim, timeout=SOON)
        await place.remove(claim, timeout=SOON)

    assert cluster.all("persistentvolumeclaims") == []
