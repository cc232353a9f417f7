"""One pass over a `SandboxBackup` whose method is snapshots: what is to be done now, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final, assert_never

from sandboxd.kubeapi.errors import KubeForbiddenError, KubeInvalidError, KubeNotFoundError
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.model.backup_errors import BackupSnapshotsUnsupportedError, BackupUnreadError
from sandboxd.model.cluster_backup import BACKUP_FINALIZER, ENDS, BackupAction, BackupState, BackupWorkStatus
from sandboxd.model.cluster_status import Reason
from sandboxd.operator.backing_up import OUT_OF_TIME, BackupWorld, blocked, conclude_backup, plan_backup, told
from sandboxd.operator.backup_shape import BackupAccess
from sandboxd.operator.kinds import Kind
from sandboxd.operator.leader import Leadership
from sandboxd.operator.mirrors import Mirrors
from sandboxd.operator.observed import is_terminating
from sandboxd.operator.plan import PlanSettings
from sandboxd.operator.snapshot_keeping import SnapshotKeeping
from sandboxd.operator.snapshot_restoring import SnapshotRestoring
from sandboxd.operator.snapshot_store import ForeignObjectError, SnapshotsMissingError, SnapshotStore
from sandboxd.operator.writing import Writer

SOONEST_LOOK: Final = 0.1
LATEST_LOOK: Final = 5.0
"""Seconds between two looks at what others do, as snapshots are not mirrored: the longer it takes, the rarer."""
_NO_ACCESS: Final = BackupAccess(location="", password=b"", credentials=b"")


def next_look(world: BackupWorld, *, now: datetime) -> float:
    """Seconds until the cluster is looked at again."""
    made = datetime.fromisoformat(world.resource["metadata"]["creationTimestamp"])
    return min(LATEST_LOOK, max(SOONEST_LOOK, (now - made).total_seconds() / 20))


class SnapshotKeeper:
    """Level-triggered: each pass looks at the cluster as it is."""

    def __init__(
        self,
        api: KubeApi,
        *,
        mirrors: Mirrors,
        writer: Writer,
        leadership: Leadership,
        settings: PlanSettings,
    ) -> None:
        self._store = SnapshotStore(api, leadership=leadership, instance=settings.instance)
        self._keeping = SnapshotKeeping(self._store, settings=settings)
        self._restoring = SnapshotRestoring(self._store, mirrors=mirrors, settings=settings)
        self._writer = writer
        self._settings = settings

    async def conclude(
        self, world: BackupWorld, look: Callable[[], BackupWorld | None], *, now: datetime
    ) -> BackupWorkStatus | None:
        """Do what is next; answers the status to be written, or None where nothing is to be said.

        Args:
            world: What there is.
            look: The same as it is after something was written.
            now: The time.

        Raises:
            KubeError: The API server did not answer, or something was changed meanwhile.
            NotLeaderError: Another operator leads.
        """
        status = world.status
        if is_terminating(world.resource) or now >= world.ends:
            await self._end(world)
            return None
        if status.state in ENDS:
            if world.pod is not None and not is_terminating(world.pod):
                await self._store.delete(Kind.POD, world.pod)
            if BACKUP_FINALIZER in world.resource["metadata"].get("finalizers", ()):
                await self._restoring.finish(world)
            return None
        try:
            return await self._go_on(world, look, now=now)
        except SnapshotsMissingError as error:
            return told(status, BackupState.FAILED, BackupSnapshotsUnsupportedError.reason, str(error))
        except ForeignObjectError as error:
            return told(status, BackupState.FAILED, Reason.OBJECT_FOREIGN.value, str(error), result=status.result)
        except (KubeForbiddenError, KubeInvalidError) as error:
            reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in error.message else Reason.SNAPSHOT_FAILED
            return told(status, BackupState.WAITING, reason.value, error.message, result=status.result)

    async def _go_on(
        self, world: BackupWorld, look: Callable[[], BackupWorld | None], *, now: datetime
    ) -> BackupWorkStatus:
        async def pod(seen: BackupWorld) -> BackupWorkStatus:
            return await self._pod(seen, look, now=now)

        status, action = world.status, world.work.action
        if action is not BackupAction.RESTORE and now >= world.deadline:
            return told(status, BackupState.FAILED, OUT_OF_TIME, f"Its time is over. {status.message}".rstrip())
        if not status.result and (found := blocked(world, self._settings)) is not None and now < world.deadline:
            return told(status, *found)
        match action:
            case BackupAction.TAKE:
                return await self._keeping.take(world, pod, now=now)
            case BackupAction.RESTORE:
                return await self._restoring.restore(world, pod, now=now)
            case BackupAction.FORGET | BackupAction.DESTROY:
                return await self._keeping.remove(world)
            case BackupAction.VERIFY:
                return await self._keeping.verify(world)
            case BackupAction.SURVEY:
                return await self._keeping.survey(world)
            case BackupAction.COMPARE:  # which `serve` does not ask for
                why = "Snapshots are read with a restore alone."
                return told(status, BackupState.FAILED, BackupUnreadError.reason, why)
            case _:
                assert_never(action)

    async def _pod(
        self, world: BackupWorld, look: Callable[[], BackupWorld | None], *, now: datetime
    ) -> BackupWorkStatus:
        """Have a pod do its part: DONE with what it said."""
        refusals = await self._writer.carry_out(plan_backup(world, self._settings, _NO_ACCESS, now=now))
        seen = look() or world
        return conclude_backup(replace(seen, claims=world.claims, refusals=refusals), self._settings, now=now)

    async def _end(self, world: BackupWorld) -> None:
        """It is not wanted any more, or its time is long over."""
        if BACKUP_FINALIZER in world.resource["metadata"].get("finalizers", ()):
            if world.status.state in ENDS:
                await self._restoring.finish(world)
            elif await self._restoring.undo(world):
                await self._restoring.let_go(world)
            else:
                return
        if not is_terminating(world.resource):
            try:
                await self._store.delete(Kind.BACKUP, world.resource)
            except KubeNotFoundError:
                return
