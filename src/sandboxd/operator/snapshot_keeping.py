"""Takes VolumeSnapshots of a sandbox's two volumes, looks after them, and removes them with proof.

Each pass looks afresh and does what is missing; whoever comes next goes on with it. Contents are kept whatever their
class says (`deletionPolicy: Retain`) from the moment that a set relies on them: a namespace or a VolumeSnapshot that
somebody deletes by mistake leaves the storage's snapshot where it is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from sandboxd.kubeapi.ports import Json
from sandboxd.model.backup import Volume
from sandboxd.model.backup_errors import BackupDamagedError
from sandboxd.model.cluster import INSTANCE_LABEL
from sandboxd.model.cluster_backup import BackupAction, BackupState, BackupWorkStatus
from sandboxd.model.cluster_status import Reason
from sandboxd.operator.backing_up import BackupWorld, node_of, told
from sandboxd.operator.kinds import Kind
from sandboxd.operator.observed import is_terminating
from sandboxd.operator.plan import PlanSettings
from sandboxd.operator.snapshot_shape import (
    HANDLE,
    SET_LABEL,
    TAKE_TIME,
    annotation,
    as_before,
    handle_noted,
    handle_of,
    read_state,
    snapshot_name,
    taken_volume,
    volume_snapshot,
)
from sandboxd.operator.snapshot_store import SnapshotStore, by_volume
from sandboxd.volumes.outcomes import strays_as_mapping, taken_as_mapping
from sandboxd.volumes.ports import TakenVolumes
from sandboxd.volumes.trees import stray_sets

UNSEEN: Final = timedelta(seconds=60)
"""A VolumeSnapshot without a status for so long is nobody's business: no snapshot controller runs."""

PodPhase = Callable[[BackupWorld], Awaitable[BackupWorkStatus]]
"""Has a pod do its part; DONE with its last word."""


class SnapshotKeeping:
    """What is done with snapshots but for restores."""

    def __init__(self, store: SnapshotStore, *, settings: PlanSettings) -> None:
        self._store = store
        self._settings = settings

    async def take(self, world: BackupWorld, pod: PodPhase, *, now: datetime) -> BackupWorkStatus:
        """Take a set, or look how far it is."""
        work, status = world.work, world.status
        namespace = world.resource["metadata"]["namespace"]
        names = {snapshot_name(work.backup, volume, reading=work.reading) for volume in Volume}
        of_set = await self._store.snapshots(namespace, backup=work.backup)
        found = by_volume([one for one in of_set if one["metadata"]["name"] in names])
        if status.cut_time is not None and len(found) != len(Volume):
            # Whoever was told of the cut has let the sandbox go on: others would be of another moment.
            text = "A VolumeSnapshot was removed after it was cut."
            return told(status, BackupState.FAILED, Reason.SNAPSHOT_FAILED.value, text)
        if any(is_terminating(one) for one in found.values()):
            return told(status, BackupState.WAITING, Reason.WAITING.value, "Former snapshots of it are being removed.")
        if len(found) == 1:
            # It broke off between the two, who knows how long ago: a set is of one moment.
            for one in found.values():
                await self._store.delete(Kind.VOLUME_SNAPSHOT, one)
            return told(status, BackupState.WAITING, Reason.WAITING.value, "One snapshot alone is taken anew.")
        if not found:
            return await self._begin(world, pod, namespace, now=now)
        cuts = [cut for one in found.values() if (cut := read_state(one).cut) is not None]
        if len(cuts) == len(Volume):
            status = replace(status, cut_time=max(cuts))
        concluded = await self._conclude(status, found, now=now)
        if concluded.state is BackupState.DONE:
            await self._drop([one for one in of_set if one["metadata"]["name"] not in names])
        return concluded

    async def _begin(self, world: BackupWorld, pod: PodPhase, namespace: str, *, now: datetime) -> BackupWorkStatus:
        means = self._settings.snapshots
        assert means is not None
        status = world.status
        for claim in world.claims.values():
            if not claim["spec"].get("volumeName"):
                text = f"The claim {claim['metadata']['name']} has no volume yet."
                return told(status, BackupState.WAITING, Reason.VOLUME_PENDING.value, text)
        if node_of(world.sandbox_pod):
            # What processes wrote may still be in the node's memory alone, also where they are frozen since.
            flushed = await pod(world)
            if flushed.state is not BackupState.DONE:
                return flushed
        for volume, claim in world.claims.items():
            body = volume_snapshot(
                world.work,
                volume,
                claim,
                namespace=namespace,
                instance=self._settings.instance,
                snapshot_class=means.snapshot_class,
                now=now,
            )
            await self._store.create(Kind.VOLUME_SNAPSHOT, namespace, body)
        return told(status, BackupState.RUNNING, Reason.STARTING.value, "The storage is asked.")

    async def _conclude(
        self, status: BackupWorkStatus, found: Mapping[Volume, Json], *, now: datetime
    ) -> BackupWorkStatus:
        contents = dict[Volume, Json]()
        for volume, snapshot in found.items():
            state = read_state(snapshot)
            if state.error and not state.ready:
                text = f"{volume.value}: {state.error}"
                return told(status, BackupState.WAITING, Reason.SNAPSHOT_FAILED.value, text)
            made = datetime.fromisoformat(snapshot["metadata"]["creationTimestamp"])
            if not state.seen and now - made > UNSEEN:
                text = "No snapshot controller takes the VolumeSnapshots up. Does it run, and the driver's snapshotter?"
                return told(status, BackupState.WAITING, Reason.SNAPSHOT_FAILED.value, text)
            if not state.ready or not state.content:
                text = f"The storage makes the snapshot of {volume.value}."
                return told(status, BackupState.RUNNING, Reason.STARTING.value, text)
            content = await self._store.get(Kind.SNAPSHOT_CONTENT, "", state.content)
            if content is None or not handle_of(content):
                text = f"The content of the snapshot of {volume.value} has no handle yet."
                return told(status, BackupState.RUNNING, Reason.STARTING.value, text)
            contents[volume] = content
        for volume, snapshot in found.items():
            await self._keep(snapshot, contents[volume])
        taken = TakenVolumes(
            take_time=min(datetime.fromisoformat(annotation(one, TAKE_TIME)) for one in found.values()),
            volumes=[taken_volume(volume, found[volume], contents[volume]) for volume in Volume],
        )
        text = json.dumps(taken_as_mapping(taken), separators=(",", ":"))
        return told(status, BackupState.DONE, Reason.AS_DESIRED.value, result=text)

    async def _keep(self, snapshot: Json, content: Json) -> None:
        """A set is about to rely on it."""
        labels = {INSTANCE_LABEL: self._settings.instance, SET_LABEL: snapshot["metadata"]["labels"][SET_LABEL]}
        if content["spec"].get("deletionPolicy") != "Retain" or SET_LABEL not in (
            content["metadata"].get("labels") or {}
        ):
            kept = {"metadata": {"labels": labels}, "spec": {"deletionPolicy": "Retain"}}
            await self._store.patch(Kind.SNAPSHOT_CONTENT, content, kept)
        if handle_noted(snapshot) != handle_of(content):
            noted = {"metadata": {"annotations": {HANDLE: handle_of(content)}}}
            await self._store.patch(Kind.VOLUME_SNAPSHOT, snapshot, noted)

    async def _drop(self, overtaken: Sequence[Json]) -> None:
        """Remove what other readings of a set have cut: nobody asks for it any more, and it would be paid for."""
        for one in overtaken:
            content = await self._store.get(Kind.SNAPSHOT_CONTENT, "", read_state(one).content or "-")
            if content is not None and content["spec"].get("deletionPolicy") != "Delete":
                await self._store.patch(Kind.SNAPSHOT_CONTENT, content, {"spec": {"deletionPolicy": "Delete"}})
            if not is_terminating(one):
                await self._store.delete(Kind.VOLUME_SNAPSHOT, one)

    async def remove(self, world: BackupWorld) -> BackupWorkStatus:
        """Remove the snapshots of sets, or all of a client's; DONE when a fresh listing has none of them."""
        work, status = world.work, world.status
        namespace = world.resource["metadata"]["namespace"]
        everything = work.action is BackupAction.DESTROY
        if everything:
            for volume in await self._store.left_over(namespace):
                await self._store.patch(Kind.VOLUME, volume, as_before(volume))
        begins, sets = tuple(f"{one}-" for one in work.sets), frozenset(work.sets)
        snapshots = await self._store.snapshots(namespace)
        contents = await self._store.contents(namespace)
        ours = {one["metadata"]["name"] for one in snapshots}
        gone_by = [one for one in snapshots if everything or one["metadata"]["labels"][SET_LABEL] in sets]
        behind = [
            one
            for one in contents
            if _of(one).startswith(begins) or (everything and (_of(one) in ours or self._is_kept(one)))
        ]
        known = sorted({*_remembered(status), *(one["metadata"]["name"] for one in gone_by), *map(_of, behind)})
        said = {"snapshots": known, "left": len(snapshots)}
        text = json.dumps(said, separators=(",", ":"))
        if not gone_by and not behind:
            return told(status, BackupState.DONE, Reason.AS_DESIRED.value, result=text)
        for one in behind:
            if one["spec"].get("deletionPolicy") != "Delete":
                await self._store.patch(Kind.SNAPSHOT_CONTENT, one, {"spec": {"deletionPolicy": "Delete"}})
            elif _of(one) not in ours and not is_terminating(one):
                await self._store.delete(Kind.SNAPSHOT_CONTENT, one)  # its VolumeSnapshot is gone already
        if all(one["spec"].get("deletionPolicy") == "Delete" for one in behind):
            for one in gone_by:
                if not is_terminating(one):
                    await self._store.delete(Kind.VOLUME_SNAPSHOT, one)
        words = [f"{len(gone_by)} VolumeSnapshots and {len(behind)} contents are being removed."]
        words += [str(error) for one in behind if (error := (one.get("status") or {}).get("error", {}).get("message"))]
        return told(status, BackupState.RUNNING, Reason.STOPPING.value, " ".join(words), result=text)

    async def verify(self, world: BackupWorld) -> BackupWorkStatus:
        """Look that the storage has every snapshot that a set relies on, the same, and calls it whole."""
        namespace = world.resource["metadata"]["namespace"]
        contents = {one["metadata"]["name"]: one for one in await self._store.contents(namespace)}
        for snapshot in await self._store.snapshots(namespace):
            if not handle_noted(snapshot):
                continue  # it is being made, or came to nothing
            if (trouble := damage(snapshot, contents.get(read_state(snapshot).content))) is not None:
                return told(world.status, BackupState.FAILED, BackupDamagedError.reason, trouble)
        return told(world.status, BackupState.DONE, Reason.AS_DESIRED.value, result="{}")

    async def survey(self, world: BackupWorld) -> BackupWorkStatus:
        """Say of which sets there are snapshots or contents, but for those that are known."""
        namespace = world.resource["metadata"]["namespace"]
        of_snapshot = dict[str, tuple[str, int]]()
        for one in await self._store.snapshots(namespace):
            of_snapshot[one["metadata"]["name"]] = (one["metadata"]["labels"][SET_LABEL], read_state(one).size)
        for one in await self._store.contents(namespace):
            if self._is_kept(one):
                known = of_snapshot.get(_of(one), ("", 0))[1]
                size = int((one.get("status") or {}).get("restoreSize") or 0)
                of_snapshot[_of(one)] = (one["metadata"]["labels"][SET_LABEL], max(known, size))
        sizes = defaultdict[str, int](int)
        for backup, size in of_snapshot.values():
            sizes[backup] += size
        text = json.dumps(strays_as_mapping(stray_sets(sizes, world.work.sets)), separators=(",", ":"))
        return told(world.status, BackupState.DONE, Reason.AS_DESIRED.value, result=text)

    def _is_kept(self, content: Json) -> bool:
        labels = content["metadata"].get("labels") or {}
        return labels.get(INSTANCE_LABEL) == self._settings.instance and SET_LABEL in labels


def damage(snapshot: Json, content: Json | None) -> str | None:
    """Say what is wrong with a snapshot that a set relies on; None where nothing is."""
    name, state = snapshot["metadata"]["name"], read_state(snapshot)
    if content is None:
        return f"The VolumeSnapshot {name} has no content any more."
    if handle_of(content) != handle_noted(snapshot):
        return f"The VolumeSnapshot {name} is another snapshot than the one that was taken."
    if not state.ready or (content.get("status") or {}).get("readyToUse") is not True:
        return f"The storage does not have the snapshot {name} ready for use. {state.error}".rstrip()
    return None


def _of(content: Json) -> str:
    """The VolumeSnapshot that a content belongs to."""
    return str(content["spec"].get("volumeSnapshotRef", {}).get("name", ""))


def _remembered(status: BackupWorkStatus) -> Sequence[str]:
    """What earlier passes have found."""
    return [str(one) for one in json.loads(status.result or "{}").get("snapshots", ())]
