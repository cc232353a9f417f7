"""Restores sandboxes from backup sets: what is there is kept first, then the volumes come back, then it starts.

All of it is one piece of work under the sandbox's own lease, from the row that says RESTORING on. What a crash leaves
goes on with the same set; before anything has started, a failure puts the sandbox back to where it came from.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, TypeVar

import structlog

from sandboxd.manager.access import require_visible
from sandboxd.manager.admission import Admission
from sandboxd.manager.backend_port import Backend
from sandboxd.manager.backing_up import BackingUp
from sandboxd.manager.backup_ports import BackupInProgressError, BackupSetNotFoundError
from sandboxd.manager.backup_tools import volumes_of
from sandboxd.manager.backups import BackupRoom, raise_failure
from sandboxd.manager.cut_short import unless_cut_short
from sandboxd.manager.intents import Intent, Intents
from sandboxd.manager.operations import Operations, Settled
from sandboxd.manager.ports import RequestRecord, UnitOfWork, UnitsOfWork
from sandboxd.manager.requests import Requests
from sandboxd.manager.restore_following import report_restore
from sandboxd.manager.restore_images import image_of, switch
from sandboxd.manager.restore_rules import (
    cancelled,
    hint_for,
    is_new,
    may_lose,
    placing,
    require_for,
    still_wanted,
    usable_set,
)
from sandboxd.manager.startup import Startup
from sandboxd.manager.volume_notes import VolumeNote
from sandboxd.model.backup import (
    BackupSet,
    BackupSetId,
    BackupSetStatus,
    BackupSetStatusError,
    BackupTrigger,
    Consistency,
    RestoreId,
    Restoring,
    Volume,
)
from sandboxd.model.backup_errors import BackupDamagedError, BackupsOffError, BackupUnnamedError, RestoreCancelledError
from sandboxd.model.caller import Request
from sandboxd.model.errors import (
    DatabaseUnavailableError,
    FieldViolation,
    InternalError,
    InvalidRequestError,
    SandboxdError,
    StaleOwnerError,
)
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.sources import Clock, IdSource
from sandboxd.volumes.paths import check_path
from sandboxd.volumes.ports import RestoreOrder
from sandboxd.volumes.volume_errors import VolumesNotFoundError

END_TIMEOUT: Final = timedelta(seconds=60)
REMOVE_TIMEOUT: Final = timedelta(seconds=60)
CLEAR_TIMEOUT: Final = timedelta(minutes=5)
DISCARD_TIMEOUT: Final = timedelta(minutes=5)
T = TypeVar("T")

log = structlog.get_logger(__name__)


class Restores:
    """The use case of Restore, and the work of RESTORING."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        intents: Intents,
        operations: Operations,
        requests: Requests,
        startup: Startup,
        backend: Backend,
        room: BackupRoom | None,
        admission: Admission,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._units = units
        self._intents = intents
        self._operations = operations
        self._requests = requests
        self._startup = startup
        self._backend = backend
        self._room = room
        self._admission = admission
        self._clock = clock
        self._ids = ids

    async def restore(
        self,
        request: Request,
        sandbox: SandboxId,
        *,
        backup: tuple[SandboxId, BackupSetId] | None = None,
        paths: Mapping[Volume, Sequence[bytes]] | None = None,
        workspace_only: bool = False,
        timeout: timedelta,
    ) -> Sandbox:
        """Bring a sandbox without compute back to what a set has, and answer when its agent answers.

        What its volumes have now is backed up first, unless a set has it already.

        Args:
            request: Who asks.
            sandbox: Terminated, stopped or paused.
            backup: A set, and whose it is: of this sandbox, or of another one of the client's. None takes the newest of
                this one, which of one that is terminated is what it ended with.
            paths: These alone; the rest of the volumes, and the image, stay. None brings back all.
            workspace_only: The workspace alone; home and image stay.
            timeout: How long the caller waits.

        Raises:
            SandboxNotFoundError: The caller has no such sandbox.
            BackupSetNotFoundError: It has no such backup.
            BackupSetStatusError: That one is not complete.
            BackupHomeError: It is another freelancer's than the sandbox, and more than its workspace is wanted.
            BackupsOffError: Nothing is backed up in this installation.
            InvalidTransitionError: The sandbox has compute: it is stopped, paused or terminated before.
            BackupUnnamedError: It is not terminated, and no backup is named.
            InvalidRequestError: Both paths and the workspace alone, or a path is none.
            QuotaExceededError: It was terminated, and a quota does not hold it any more.
            DeadlineError: It is not done within `timeout`; the work goes on.
            SandboxdError: What could not be restored; the sandbox is where it was, or FAILED where it does not start.
        """

        async def plan(work: UnitOfWork, found: Sandbox) -> Sandbox:
            require_visible(found, request.caller)
            self.require_room()
            now = self._clock.now()
            entered = found.enter(SandboxState.RESTORING, at=now, hint=hint_for(found))
            restoring = Restoring(
                id=RestoreId(self._ids.new("rst")),
                backup=None if backup is None else backup[1],
                paths={volume: tuple(those) for volume, those in (paths or {}).items()},
                volumes=(Volume.WORKSPACE,) if workspace_only else tuple(Volume),
                came_from=found.state.value,
                still_since=found.state_time,
            )
            if backup is not None:
                wanted = await usable_set(work, request.caller, backup)
                require_for(found, wanted, restoring)
                self.require_room().making.tools.require_doable(wanted, restoring)
            elif found.state is not SandboxState.TERMINATED:
                raise BackupUnnamedError(sandbox, found.state.value)
            elif (newest := await work.backup_sets.newest(sandbox)) is not None:
                self.require_room().making.tools.require_doable(newest, restoring)
            if found.volumes_released is not None and not restoring.whole:
                raise InvalidRequestError(
                    f"The volumes of sandbox {sandbox} were released: restore it whole first.",
                    violations=[FieldViolation(field="paths", description="needs volumes that are there")],
                )
            if found.state is SandboxState.TERMINATED:
                await self._admission.admit(work, found.client, found.freelancer, tier=found.tier, at=now)
            return replace(entered, restoring=restoring)

        if paths and workspace_only:
            raise InvalidRequestError(
                "Paths say themselves what of a volume comes back: leave out that the workspace alone is wanted.",
                violations=[FieldViolation(field="workspace_only", description="does not go with paths")],
            )
        for path in (one for those in (paths or {}).values() for one in those):
            check_path(path)
        claim = self._requests.record(request, "Restore", sandbox)
        failpoint("restore.before_commit")
        began = self._clock.monotonic()
        intent = await self._intents.open(sandbox, plan, claim=claim, timeout=timeout)
        left = max(timedelta(0), timeout - timedelta(seconds=self._clock.monotonic() - began))
        if isinstance(intent, RequestRecord):
            return (await self._requests.repeat(intent, claim, timeout=left)).sandbox
        return (await self._operations.finish(intent, self.finish, timeout=left)).sandbox

    async def finish(self, intent: Intent) -> Settled:
        """Carry RESTORING out from wherever it stands. Safe to repeat from its beginning.

        Raises:
            SandboxdError: It failed: the sandbox is where it came from, or FAILED where it does not start.
        """
        restoring = intent.sandbox.restoring
        if restoring is None:
            raise InternalError(f"Sandbox {intent.sandbox.id} is RESTORING, and nothing says what.")
        if not restoring.restored:
            try:
                intent = await self._clear(intent)
                intent, chosen = await self._bring_back(intent, restoring)
                intent = await self._intents.advance(intent, lambda work, now: self._restored(work, now, chosen))
            except (DatabaseUnavailableError, StaleOwnerError):
                raise  # recovery goes on
            except SandboxdError as error:
                await self._turn_back(intent, restoring, error)
                raise
            await self._end(restoring.id)
        return await self._startup.bring_up(intent)

    async def _bring_back(self, intent: Intent, restoring: Restoring) -> tuple[Intent, BackupSet]:
        """Bring the volumes back. What there is of them changes only when nobody can wish any more that it ends."""
        sandbox, note = intent.sandbox, VolumeNote(progress=restoring.progress)
        tools = self.require_room().making.tools
        if not restoring.placing:
            if restoring.cancelled:
                raise cancelled(sandbox.id)
            await self._unless_cancelled(self._prepare(sandbox, restoring, note), restoring, note, sandbox.id)
            failpoint("restore.after_stage")
            if may_lose(sandbox):
                intent = await self._intents.advance(intent, placing)
                failpoint("restore.placing")
        chosen, order = await self._order(sandbox, restoring)
        work = tools.of(chosen.method).restore(order, timeout=tools.restore_timeout, progress=note.take)
        back = await self._unless_cancelled(work, restoring, note, sandbox.id)
        log.info("backup.restored", sandbox=sandbox.id, backup=chosen.id, entries=back.entries, bytes=back.bytes)
        failpoint("restore.after_volumes")
        return intent, chosen

    async def _prepare(self, sandbox: Sandbox, restoring: Restoring, note: VolumeNote) -> None:
        """Keep what is there, and put beside it what comes back; of what is not there nothing can be lost."""
        room = self.require_room()
        if may_lose(sandbox):
            await self._protect(room.making, sandbox, restoring)
        chosen, order = await self._order(sandbox, restoring)
        failpoint("restore.before_volumes")
        if may_lose(sandbox):
            tools = room.making.tools
            await tools.of(chosen.method).stage(order, timeout=tools.restore_timeout, progress=note.take)

    async def _unless_cancelled(
        self, work: Coroutine[Any, Any, T], restoring: Restoring, note: VolumeNote, sandbox: SandboxId
    ) -> T:  # Any: what a coroutine sends and takes is asyncio's
        every = self.require_room().making.report_every
        report = report_restore(self._units, sandbox, restoring.id, note, every=every)
        return await unless_cut_short(work, report, name=f"restore-{restoring.id}")

    async def _order(self, sandbox: Sandbox, restoring: Restoring) -> tuple[BackupSet, RestoreOrder]:
        """Say what comes back."""
        released = sandbox.volumes_released
        wanted = restoring.backup or (released.backup if released is not None else None)
        async with self._units.begin() as work:
            if wanted is not None:
                chosen: BackupSet | None = await work.backup_sets.get(wanted)
            else:
                chosen = await work.backup_sets.newest(sandbox.id)
            if chosen is None:
                raise BackupSetNotFoundError(f"of sandbox {sandbox.id}")
            if chosen.status is not BackupSetStatus.COMPLETE:
                raise BackupSetStatusError(chosen, wanted=BackupSetStatus.COMPLETE)
            if restoring.whole:
                await image_of(work, sandbox, chosen)
        if chosen.checksum and chosen.checksum != chosen.sum():
            raise BackupDamagedError(f"The row of backup {chosen.id} is not what it was.", backup=chosen.id)
        return chosen, RestoreOrder(
            id=restoring.id,
            into=volumes_of(sandbox),
            snapshots={one.volume: one.snapshot for one in chosen.volumes if restoring.wants(one.volume)},
            paths=restoring.paths,
        )

    async def _clear(self, intent: Intent) -> Intent:
        """Destroy what a release that broke off, or a restore that failed, has left: a set has all that counts."""
        sandbox, kept = intent.sandbox, self.require_room().making.tools.kept
        released = sandbox.volumes_released
        if released is None or released.end_time is not None or kept is None:
            return intent
        if left := await kept.find(sandbox.id, timeout=REMOVE_TIMEOUT):
            await kept.release(sandbox.id, left, timeout=CLEAR_TIMEOUT)
        over = replace(released, end_time=self._clock.now())

        async def cleared(_: UnitOfWork, found: Sandbox) -> Sandbox:
            return replace(found, released=over, version=found.version + 1)

        return await self._intents.advance(intent, cleared)

    async def _protect(self, making: BackingUp, sandbox: Sandbox, restoring: Restoring) -> None:
        """See that a set has what the volumes have now: a restore replaces it."""
        while True:
            async with self._units.begin() as work:
                newest = await work.backup_sets.newest(sandbox.id)
                sets = await work.backup_sets.of_sandbox(sandbox.id, limit=100)
                life = await work.incarnations.get(sandbox.incarnation) if sandbox.incarnation else None
            # A restore that failed begins the state anew; what the volumes have is of the last life, still.
            still = restoring.still_since if life is None or life.end_time is None else life.end_time
            if (
                newest is not None
                and newest.consistency is Consistency.QUIESCED
                and still is not None
                and newest.take_time >= still
            ):
                return
            flying = next((one.id for one in sets if one.status is BackupSetStatus.CREATING), None)
            if flying is None:
                try:
                    flying = (await making.begin(sandbox.id, trigger=BackupTrigger.RESTORE)).id
                except BackupInProgressError:
                    continue
                ended = await making.wait(flying, timeout=making.tools.take_timeout)
                if ended.failure == VolumesNotFoundError.reason:
                    return  # there is nothing to lose
                raise_failure(ended)
                return
            await making.wait(flying, timeout=making.tools.take_timeout)

    async def _restored(self, work: UnitOfWork, sandbox: Sandbox, chosen: BackupSet) -> Sandbox:
        """Write that the volumes are restored, with the image that goes with them and the next life."""
        now = self._clock.now()
        restoring = still_wanted(sandbox)
        if restoring.whole:
            wanted = await image_of(work, sandbox, chosen)
            sandbox = await switch(work, sandbox, wanted, at=now, ids=self._ids)
        former = await work.incarnations.current(sandbox.id)
        if former is not None:
            await work.incarnations.save(replace(former, end_time=now, end_reason="RESTORED"))
        planned, life = self._startup.new_life(sandbox)
        await work.incarnations.add(life)
        released = sandbox.volumes_released
        if released is not None:
            pinned = await work.backup_sets.get(released.backup, for_update=True)
            await work.backup_sets.save(pinned.pin(at=None))
        done = replace(restoring, restored=True)
        return replace(planned, restoring=done, released=None, update_time=now, version=planned.version + 1)

    async def _turn_back(self, intent: Intent, restoring: Restoring, error: SandboxdError) -> None:
        """Put it back to where it came from; of what came back halfway, repeating the restore makes a whole."""
        sandbox, state = intent.sandbox.id, SandboxState(restoring.came_from)
        if not await self._end(restoring.id):
            return  # volumes may be changing hands: it stays RESTORING until recovery knows that none does
        if isinstance(error, RestoreCancelledError) and may_lose(intent.sandbox):
            await self._discard(intent.sandbox, restoring)
        failpoint("restore.turning_back")
        if state is SandboxState.TERMINATED:
            try:
                if is_new(intent.sandbox):  # nothing of anybody's is in it but half of what the backup has
                    await self._backend.erase(sandbox, timeout=REMOVE_TIMEOUT)
                else:
                    await self._backend.remove(sandbox, timeout=REMOVE_TIMEOUT)
            except SandboxdError as left:
                log.warning("restore.not_removed", sandbox=sandbox, error=left.message)
        told = "and empty: restore into it again, or create another one" if is_new(intent.sandbox) else "as before"
        error.add(f"Sandbox {sandbox} is {state.value} {told}.", sandbox=sandbox, state=state.value)

        async def back(_: UnitOfWork, before: Sandbox) -> Sandbox:
            returned = before.enter(state, at=self._clock.now(), reason=error.message)
            if state is not SandboxState.TERMINATED or before.terminate_time is None:
                return returned
            # It ended when it ended: what is in its volumes halfway is not taken for how it did.
            ended, released = restoring.still_since or returned.state_time, before.volumes_released
            if released is not None:
                released = replace(released, end_time=None)  # what came back of them goes again
            return replace(returned, state_time=ended, terminate_time=before.terminate_time, released=released)

        await self._intents.settle(intent, back, error=error)

    async def _discard(self, sandbox: Sandbox, restoring: Restoring) -> None:
        """Take away what was put beside what is there; what cannot be goes with the next restore."""
        try:
            chosen, order = await self._order(sandbox, restoring)
            await self.require_room().making.tools.of(chosen.method).discard(order, timeout=DISCARD_TIMEOUT)
        except SandboxdError as left:
            log.warning("restore.not_discarded", sandbox=sandbox.id, error=left.message)

    async def _end(self, restore: RestoreId) -> bool:
        """See that nothing works on it any more; False where that is not known."""
        if self._room is None:
            return True
        try:
            await self._room.making.tools.end(restore, timeout=END_TIMEOUT)
        except SandboxdError as error:
            log.warning("restore.work_not_ended", restore=restore, error=error.message)
            return False
        return True

    def require_room(self) -> BackupRoom:
        """Answer what works on backups here.

        Raises:
            BackupsOffError: Nothing is backed up in this installation.
        """
        if self._room is not None:
            return self._room
        raise BackupsOffError(
            "This installation keeps no backups: SANDBOXD_BACKUPS_LOCATION says where they would lie, or "
            "SANDBOXD_BACKUPS_METHOD=snapshots that volumes of a cluster are snapshotted.",
            setting="SANDBOXD_BACKUPS_LOCATION",
        )
