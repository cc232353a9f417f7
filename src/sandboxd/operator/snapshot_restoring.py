"""Puts volumes that are made of snapshots in the place of a sandbox's, and back where that comes to nothing.

A claim's name is its StatefulSet's, so one takes the place of the other. What was there outlives its claim: its volume
is kept (`Retain`, with a label) until the new ones are bound and a pod has mounted them. Then it goes as its own policy
says. Whatever fails or is ended before that puts it back. A finalizer keeps the work until one or the other is done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

import structlog

from sandboxd.kubeapi.ports import Json
from sandboxd.model.backup import SnapshotId, Volume
from sandboxd.model.backup_errors import BackupDamagedError, BackupSnapshotNotFoundError
from sandboxd.model.cluster import claims_of
from sandboxd.model.cluster_backup import BACKUP_FINALIZER, BackupState, BackupWorkStatus
from sandboxd.model.cluster_status import Reason
from sandboxd.operator.backing_up import OUT_OF_TIME, BackupWorld, told
from sandboxd.operator.backup_shape import backup_claim
from sandboxd.operator.kinds import Kind
from sandboxd.operator.mirrors import Mirrors
from sandboxd.operator.observed import is_ours, is_terminating
from sandboxd.operator.plan import PlanSettings
from sandboxd.operator.snapshot_keeping import PodPhase, damage
from sandboxd.operator.snapshot_shape import (
    CLASS,
    RESTORE,
    annotation,
    as_before,
    former_claim,
    is_out_of_the_way,
    left_over,
    out_of_the_way,
    read_state,
    restored_claim,
)
from sandboxd.operator.snapshot_store import ForeignObjectError, SnapshotStore

log = structlog.get_logger(__name__)
_UNDO: Final = "undo"
_BUSY: Final = (BackupState.RUNNING, Reason.STARTING.value)


class _NothingComesError(Exception):
    """It cannot be done; what was there comes back."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SnapshotRestoring:
    """One restore, pass by pass."""

    def __init__(self, store: SnapshotStore, *, mirrors: Mirrors, settings: PlanSettings) -> None:
        self._store = store
        self._mirrors = mirrors
        self._settings = settings

    async def restore(self, world: BackupWorld, pod: PodPhase, *, now: datetime) -> BackupWorkStatus:
        """Go on with it; FAILED only when everything is as it was."""
        status = world.status
        undo = json.loads(status.result or "{}").get(_UNDO)
        if undo is None:
            try:
                if now >= world.deadline:
                    raise _NothingComesError(OUT_OF_TIME, f"Its time is over. {status.message}".rstrip())
                return await self._forward(world, pod)
            except ForeignObjectError as error:
                undo = {"reason": Reason.OBJECT_FOREIGN.value, "message": str(error)}
            except _NothingComesError as error:
                undo = {"reason": error.reason, "message": str(error)}
        if await self.undo(world):
            return told(status, BackupState.FAILED, undo["reason"], undo["message"])
        text = f"What was there is put back: {undo['message']}"
        return told(
            status, BackupState.RUNNING, Reason.STOPPING.value, text, result=json.dumps({_UNDO: undo}, sort_keys=True)
        )

    async def finish(self, world: BackupWorld) -> None:
        """Let go of work that has come to its end; of what was there before, where something else is there now."""
        if world.status.state is BackupState.DONE:
            for volume in await self._store.volumes(world.resource["metadata"]["name"]):
                await self._store.patch(Kind.VOLUME, volume, as_before(volume))
        await self.let_go(world)

    async def let_go(self, world: BackupWorld) -> None:
        """Take the finalizer away."""
        found = await self._store.get(
            Kind.BACKUP, world.resource["metadata"]["namespace"], world.resource["metadata"]["name"]
        )
        if found is not None and BACKUP_FINALIZER in (found["metadata"].get("finalizers") or ()):
            left = [one for one in found["metadata"]["finalizers"] if one != BACKUP_FINALIZER]
            await self._store.patch(Kind.BACKUP, found, {"metadata": {"finalizers": left or None}})

    async def undo(self, world: BackupWorld) -> bool:
        """Put back what was there; True when it is."""
        metadata = world.resource["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        if world.pod is not None:
            if not is_terminating(world.pod):
                await self._store.delete(Kind.POD, world.pod)
            return False
        kept = dict[str, Json]()
        for one in sorted(await self._store.volumes(name), key=lambda one: one["metadata"]["creationTimestamp"]):
            if (first := kept.setdefault(one["spec"]["claimRef"]["name"], one)) is not one:
                await self._leave(world, one, first["spec"]["claimRef"]["name"])  # of a claim that came in between
        done = True
        for volume, claim_name in self._names(world).items():
            claim = await self._store.get(Kind.CLAIM, namespace, claim_name)
            done &= await self._undo(world, volume, claim, kept.get(claim_name))
        return done

    async def _undo(self, world: BackupWorld, volume: Volume, claim: Json | None, kept: Json | None) -> bool:
        metadata = world.resource["metadata"]
        if claim is not None and (is_terminating(claim) or annotation(claim, RESTORE) == metadata["name"]):
            if not is_terminating(claim):
                await self._store.delete(Kind.CLAIM, claim)
            return False
        if kept is None:
            return True  # nothing was there, or it is there again
        if claim is None:
            if kept["spec"]["claimRef"].get("uid"):
                reserved = {"claimRef": {"uid": None, "resourceVersion": None}}
                await self._store.patch(Kind.VOLUME, kept, {"spec": reserved})
            else:
                body = former_claim(
                    world.work,
                    volume,
                    kept,
                    namespace=metadata["namespace"],
                    instance=self._settings.instance,
                    kept=world.sandbox is None,
                )
                await self._store.create(Kind.CLAIM, metadata["namespace"], body)
            return False
        if claim["spec"].get("volumeName") != kept["metadata"]["name"]:
            await self._leave(world, kept, claim["metadata"]["name"])  # somebody else was faster
            return True
        if (claim.get("status") or {}).get("phase") != "Bound":
            return False
        await self._store.patch(Kind.VOLUME, kept, as_before(kept))
        return True

    async def _leave(self, world: BackupWorld, volume: Json, claim: str) -> None:
        """Keep a volume whose claim's name is taken, without a claim: what is abandoned tells of it."""
        log.warning("operator.volume_left_over", volume=volume["metadata"]["name"], claim=claim)
        body = left_over(volume, sandbox=world.work.sandbox, uid=world.resource["metadata"]["uid"])
        await self._store.patch(Kind.VOLUME, volume, body)

    async def _forward(self, world: BackupWorld, pod: PodPhase) -> BackupWorkStatus:
        status, metadata = world.status, world.resource["metadata"]
        claims = {
            volume: await self._store.get(Kind.CLAIM, metadata["namespace"], name)
            for volume, name in self._names(world).items()
        }
        if not self._are_placed(claims, world):
            snapshots = await self._snapshots(world)
            moved = [await self._place(world, volume, claims[volume], snapshots) for volume in claims]
            if any(moved):
                text = "The claims of what was there give way to those of what comes back."
                return told(status, *_BUSY, text)
        there = {volume: claim for volume, claim in claims.items() if claim is not None}
        pending = [one for one in there.values() if (one.get("status") or {}).get("phase") != "Bound"]
        if any(not self._waits_for_pod(one) for one in pending):
            return await self._unbound(world, pending[0], status)
        looked = await pod(replace(world, claims=there))
        if looked.state is BackupState.FAILED:
            raise _NothingComesError(looked.reason, looked.message)
        if pending and looked.reason in (Reason.STARTING.value, Reason.NOT_CREATED.value):
            return await self._unbound(world, pending[0], looked)
        return looked

    async def _unbound(self, world: BackupWorld, claim: Json, status: BackupWorkStatus) -> BackupWorkStatus:
        name = claim["metadata"]["name"]
        warning = await self._store.warning(world.resource["metadata"]["namespace"], name)
        text = f"The storage makes the volume of claim {name}. {warning}".rstrip()
        return told(status, BackupState.WAITING, Reason.VOLUME_PENDING.value, text)

    def _are_placed(self, claims: Mapping[Volume, Json | None], world: BackupWorld) -> bool:
        work, name = world.work, world.resource["metadata"]["name"]
        return all(
            claim is not None
            and not is_terminating(claim)
            and (volume not in work.snapshots or annotation(claim, RESTORE) == name)
            for volume, claim in claims.items()
        )

    async def _place(
        self, world: BackupWorld, volume: Volume, claim: Json | None, snapshots: Mapping[Volume, Json]
    ) -> bool:
        """Do the next step of one volume; True where another one follows."""
        metadata, work, template = world.resource["metadata"], world.work, world.template
        assert template is not None
        namespace, name, instance = metadata["namespace"], metadata["name"], self._settings.instance
        kept = world.sandbox is None
        if claim is None:
            if volume in snapshots:
                body = restored_claim(
                    work,
                    volume,
                    snapshots[volume],
                    template,
                    name=name,
                    namespace=namespace,
                    instance=instance,
                    kept=kept,
                )
            else:
                body = backup_claim(work, volume, template, namespace=namespace, instance=instance, kept=kept)
            await self._store.create(Kind.CLAIM, namespace, body)
            return True
        if not is_ours(claim, instance=instance):
            text = f"The claim {claim['metadata']['name']} belongs to somebody else; it is left alone."
            raise _NothingComesError(Reason.OBJECT_FOREIGN.value, text)
        if is_terminating(claim):
            return True
        if volume not in snapshots or annotation(claim, RESTORE) == name:
            return False
        found = await self._store.get(Kind.VOLUME, "", claim["spec"].get("volumeName") or "-")
        if found is not None and not is_out_of_the_way(found, work=name):
            await self._store.patch(Kind.VOLUME, found, out_of_the_way(found, work=name))
        else:
            await self._store.delete(Kind.CLAIM, claim)
        return True

    async def _snapshots(self, world: BackupWorld) -> Mapping[Volume, Json]:
        """What comes back: nothing is touched where one is not what it was."""
        namespace, found = world.resource["metadata"]["namespace"], dict[Volume, Json]()
        for volume, name in world.work.snapshots.items():
            snapshot = await self._store.get(Kind.VOLUME_SNAPSHOT, namespace, name)
            if not is_ours(snapshot, instance=self._settings.instance) or snapshot is None or is_terminating(snapshot):
                text = f"There is no VolumeSnapshot {SnapshotId(name)} of the backup."
                raise _NothingComesError(BackupSnapshotNotFoundError.reason, text)
            content = await self._store.get(Kind.SNAPSHOT_CONTENT, "", read_state(snapshot).content or "-")
            if (trouble := damage(snapshot, content)) is not None:
                raise _NothingComesError(BackupDamagedError.reason, trouble)
            wanted = annotation(snapshot, CLASS)
            if wanted and self._mirrors.get(Kind.STORAGE_CLASS, "", wanted) is None:
                text = f"There is no StorageClass {wanted} any more, of which the volume was that was snapshotted."
                raise _NothingComesError(BackupDamagedError.reason, text)
            found[volume] = snapshot
        return found

    def _waits_for_pod(self, claim: Json) -> bool:
        """Tell whether its volume is made only when a pod wants it."""
        name = claim["spec"].get("storageClassName") or ""
        found = self._mirrors.get(Kind.STORAGE_CLASS, "", name)
        return found is not None and found.get("volumeBindingMode") == "WaitForFirstConsumer"

    @staticmethod
    def _names(world: BackupWorld) -> Mapping[Volume, str]:
        return {Volume(volume): name for volume, name in claims_of(world.work.sandbox).items()}
