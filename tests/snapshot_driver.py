"""A storage that makes snapshots, played by the tests: volumes are directories, a snapshot is a copy of one.

It is CSI driver, provisioner, snapshotter and snapshot controller in one, as far as sandboxd sees them: objects and
their statuses. On a cluster in memory it also is the controller that binds claims. No real driver is anywhere in it.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sandboxd.kubeapi.errors import KubeConflictError, KubeNotFoundError, KubeUnavailableError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.model.quantity import parse_quantity

SNAPSHOTS = "/apis/snapshot.storage.k8s.io/v1"
CORE = "/api/v1"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
FINALIZER = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"


@dataclass(kw_only=True)
class SnapshotDriver:
    """Volumes of one StorageClass."""

    api: KubeApi
    directory: Path
    storage_class: str
    waits_for_pod: bool = False
    """Makes a volume when a pod that wants it has a node."""
    binds: bool = False
    """The cluster has no controller that binds claims."""
    deletion_policy: str = "Delete"
    """Of its VolumeSnapshotClass."""
    trouble: str = ""
    """What it answers in place of a snapshot."""
    slow: bool = False
    """Cuts at once, and is not ready yet."""
    stuck: bool = False
    """Makes no volume of a snapshot."""
    answers: bool = True
    """False: nobody looks at VolumeSnapshots."""
    cut: list[str] = field(default_factory=list)
    """Names of VolumeSnapshots, in the order in which they were cut."""

    @property
    def name(self) -> str:
        """Of the driver."""
        return f"{self.storage_class}.sandboxd.test"

    def place(self, volume: str) -> Path:
        """Where a PersistentVolume is."""
        return self.directory / "volumes" / volume

    @property
    def stored(self) -> set[str]:
        """Handles of the snapshots that the storage has."""
        return {one.name for one in (self.directory / "snapshots").glob("*")}

    @property
    def volumes(self) -> set[str]:
        """Names of the volumes that the storage has."""
        return {one.name for one in (self.directory / "volumes").glob("*")}

    @asynccontextmanager
    async def running(self, *, every: float = 0.02) -> AsyncIterator[SnapshotDriver]:
        """Work until it is left."""
        task = asyncio.create_task(self._run(every), name="snapshot-driver")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, every: float) -> None:
        while True:
            with suppress(KubeConflictError, KubeNotFoundError, KubeUnavailableError):  # the next look sees it
                await self.step()
            await asyncio.sleep(every)

    async def step(self) -> None:
        """Look at everything once."""
        claims = await self._all(f"{CORE}/persistentvolumeclaims")
        volumes = [one for one in await self._all(f"{CORE}/persistentvolumes") if self._is_mine(one)]
        await self._provide(claims, volumes)
        if self.binds:
            await self._bind(claims, volumes)
        await self._reclaim(claims, volumes)
        contents = await self._all(f"{SNAPSHOTS}/volumesnapshotcontents")
        snapshots = await self._all(f"{SNAPSHOTS}/volumesnapshots")
        if self.answers:
            await self._snapshot(snapshots, contents, claims)
        await self._forget(snapshots, contents)

    async def _provide(self, claims: Sequence[Json], volumes: Sequence[Json]) -> None:
        there = {one["metadata"]["name"] for one in volumes}
        for claim in claims:
            metadata, spec = claim["metadata"], claim["spec"]
            name = f"pv-{metadata['uid']}"
            if spec.get("storageClassName") != self.storage_class or spec.get("volumeName") or name in there:
                continue
            if self.waits_for_pod and SELECTED_NODE not in metadata.get("annotations", {}):
                continue
            size = spec["resources"]["requests"]["storage"]
            if (source := spec.get("dataSource")) is not None:
                snapshot = await self.api.get(_path("volumesnapshots", metadata["namespace"], source["name"]))
                status = snapshot.get("status") or {}
                if self.stuck or not status.get("readyToUse"):
                    continue
                assert parse_quantity(size) >= parse_quantity(status["restoreSize"]), "less than the snapshot"
                content = await self.api.get(
                    _path("volumesnapshotcontents", "", status["boundVolumeSnapshotContentName"])
                )
                _copy(self.directory / "snapshots" / content["status"]["snapshotHandle"], self.place(name))
            else:
                self.place(name).mkdir(parents=True)
            await self.api.create(f"{CORE}/persistentvolumes", self._volume(name, claim, size))

    def _volume(self, name: str, claim: Json, size: str) -> Json:
        metadata = claim["metadata"]
        reference = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            **{part: metadata[part] for part in ("namespace", "name", "uid")},
        }
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "annotations": {PROVISIONED_BY: self.name}},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": claim["spec"]["accessModes"],
                "persistentVolumeReclaimPolicy": "Delete",
                "storageClassName": self.storage_class,
                "claimRef": reference,
                "hostPath": {"path": str(self.place(name)), "type": "Directory"},
            },
        }

    async def _bind(self, claims: Sequence[Json], volumes: Sequence[Json]) -> None:
        by_name = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in claims}
        for volume in volumes:
            reference = volume["spec"]["claimRef"]
            claim = by_name.get((reference["namespace"], reference["name"]))
            is_its = claim is not None and reference.get("uid") in (None, claim["metadata"]["uid"])
            phase = (volume.get("status") or {}).get("phase")
            if claim is None or not is_its:
                if phase == "Bound" and reference.get("uid"):
                    await self._phase("persistentvolumes", volume, "Released")
            elif phase != "Bound" or (claim.get("status") or {}).get("phase") != "Bound":
                bound = {"spec": {"claimRef": {"uid": claim["metadata"]["uid"]}}}
                await self.api.patch(_path("persistentvolumes", "", volume["metadata"]["name"]), bound)
                await self._phase("persistentvolumes", volume, "Bound")
                place = _path("persistentvolumeclaims", reference["namespace"], reference["name"])
                await self.api.patch(place, {"spec": {"volumeName": volume["metadata"]["name"]}})
                await self._phase("persistentvolumeclaims", claim, "Bound")

    async def _reclaim(self, claims: Sequence[Json], volumes: Sequence[Json]) -> None:
        for volume in volumes:
            released = (volume.get("status") or {}).get("phase") == "Released"
            if released and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
                await self.api.delete(_path("persistentvolumes", "", volume["metadata"]["name"]))
                shutil.rmtree(self.place(volume["metadata"]["name"]), ignore_errors=True)

    async def _snapshot(self, snapshots: Sequence[Json], contents: Sequence[Json], claims: Sequence[Json]) -> None:
        by_name = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in claims}
        for snapshot in snapshots:
            metadata = snapshot["metadata"]
            source = snapshot["spec"]["source"]["persistentVolumeClaimName"]
            claim = by_name.get((metadata["namespace"], source))
            if claim is None or claim["spec"].get("storageClassName") != self.storage_class:
                continue
            if (snapshot.get("status") or {}).get("readyToUse") or metadata.get("deletionTimestamp"):
                continue
            now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
            place = _path("volumesnapshots", metadata["namespace"], metadata["name"])
            if self.trouble:
                said = {"readyToUse": False, "error": {"message": self.trouble, "time": now}}
                if (snapshot.get("status") or {}).get("error", {}).get("message") != self.trouble:
                    await self.api.patch(f"{place}/status", {"status": said})
                continue
            handle = metadata["uid"]
            content = f"snapcontent-{handle}"
            if all(one["metadata"]["name"] != content for one in contents):
                _copy(self.place(claim["spec"]["volumeName"]), self.directory / "snapshots" / handle)
                self.cut.append(metadata["name"])
                await self.api.create(f"{SNAPSHOTS}/volumesnapshotcontents", self._content(content, snapshot, claim))
            told = {"snapshotHandle": handle, "readyToUse": not self.slow, "restoreSize": 1 << 20}
            await self.api.patch(f"{_path('volumesnapshotcontents', '', content)}/status", {"status": told})
            status = {
                "boundVolumeSnapshotContentName": content,
                "creationTime": now,
                "readyToUse": not self.slow,
                "restoreSize": "1Mi",
                "error": None,
            }
            await self.api.patch(f"{place}/status", {"status": status})

    def _content(self, name: str, snapshot: Json, claim: Json) -> Json:
        metadata = snapshot["metadata"]
        return {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshotContent",
            "metadata": {"name": name, "finalizers": [FINALIZER]},
            "spec": {
                "deletionPolicy": self.deletion_policy,
                "driver": self.name,
                "source": {"volumeHandle": claim["spec"]["volumeName"]},
                "volumeSnapshotRef": {
                    "apiVersion": "snapshot.storage.k8s.io/v1",
                    "kind": "VolumeSnapshot",
                    **{part: metadata[part] for part in ("namespace", "name", "uid")},
                },
            },
        }

    async def _forget(self, snapshots: Sequence[Json], contents: Sequence[Json]) -> None:
        """Contents whose VolumeSnapshot is gone go where that is their policy, and what the storage has."""
        there = {one["metadata"]["uid"] for one in snapshots}
        for content in contents:
            name, metadata = content["metadata"]["name"], content["metadata"]
            place, goes = _path("volumesnapshotcontents", "", name), content["spec"]["deletionPolicy"] == "Delete"
            if content["spec"]["driver"] != self.name:
                continue
            if metadata.get("deletionTimestamp"):
                if goes:
                    shutil.rmtree(self.directory / "snapshots" / name.removeprefix("snapcontent-"), ignore_errors=True)
                await self.api.patch(place, {"metadata": {"finalizers": None}})
            elif goes and content["spec"]["volumeSnapshotRef"]["uid"] not in there:
                await self.api.delete(place)

    async def _phase(self, kind: str, found: Json, phase: str) -> None:
        metadata = found["metadata"]
        place = _path(kind, metadata.get("namespace", ""), metadata["name"])
        await self.api.patch(f"{place}/status", {"status": {"phase": phase}})

    async def _all(self, collection: str) -> Sequence[Json]:
        found: Sequence[Json] = (await self.api.get(collection)).get("items") or ()
        return found

    def _is_mine(self, volume: Json) -> bool:
        return (volume["metadata"].get("annotations") or {}).get(PROVISIONED_BY) == self.name


def _path(kind: str, namespace: str, name: str) -> str:
    api = SNAPSHOTS if kind.startswith("volumesnapshot") else CORE
    return f"{api}/namespaces/{namespace}/{kind}/{name}" if namespace else f"{api}/{kind}/{name}"


def _copy(source: Path, target: Path) -> None:
    """All that a storage would keep, owners and holes among it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--sparse=auto", str(source), str(target)], check=True, timeout=60)
