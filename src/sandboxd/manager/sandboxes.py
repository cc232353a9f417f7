"""The sandbox manager as the edges see it: one object with everything that can be done with sandboxes.

It is built after the stream room, because it needs it; what that room needs of it is in `core.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta

from sandboxd.manager.admission import Admission
from sandboxd.manager.announcing import RestNotice
from sandboxd.manager.auto_upgrades import AutoUpgrades
from sandboxd.manager.backend_port import BackendDescription
from sandboxd.manager.backups import Backups
from sandboxd.manager.claims import PoolClaims
from sandboxd.manager.cold_starts import ColdStarts
from sandboxd.manager.core import ManagerCore
from sandboxd.manager.creation import Creation, NewSandbox
from sandboxd.manager.editing import Editing, SandboxEdit
from sandboxd.manager.frozen_backups import FrozenBackups
from sandboxd.manager.images import Images
from sandboxd.manager.operations import Settled
from sandboxd.manager.package_tidings import PackageTelling, PackageTidings
from sandboxd.manager.package_watching import PackageWatcher
from sandboxd.manager.ports import Conversations, SandboxOrder
from sandboxd.manager.quieting import Quieting
from sandboxd.manager.reading import Reading, SandboxChange, Selection
from sandboxd.manager.rebuilding import Rebuilding
from sandboxd.manager.recovery import Recovery
from sandboxd.manager.refill import Refill
from sandboxd.manager.release import Release
from sandboxd.manager.requests import Requests
from sandboxd.manager.resting import Resting
from sandboxd.manager.restoring import Restores
from sandboxd.manager.stillness import Stillness
from sandboxd.manager.sweep import Sweep
from sandboxd.manager.sweeping import SweepLoop
from sandboxd.model.backup import BackupSetId, Volume
from sandboxd.model.caller import Caller, Request
from sandboxd.model.final_backup import FinalBackup
from sandboxd.model.ids import SandboxId
from sandboxd.model.next_step import NextStep
from sandboxd.model.paging import Page
from sandboxd.model.sandbox import Sandbox
from sandboxd.model.startup import StartReport

__all__ = ["ManagerCore", "SandboxManager"]


class SandboxManager:
    """Everything that can be done with sandboxes. `run` must run beside it."""

    def __init__(self, *, core: ManagerCore, conversations: Conversations) -> None:
        tools = core.tools
        self._core = core
        requests = Requests(units=tools.units, clock=tools.clock, changes=core.changes)
        release = Release(
            intents=core.intents,
            backend=tools.backend,
            conversations=conversations,
            connector=tools.connector,
            clock=tools.clock,
            tracer=tools.tracer,
        )
        quieting = Quieting(
            units=tools.units,
            intents=core.intents,
            freezing=core.freezing,
            release=release,
            conversations=conversations,
            connector=tools.connector,
            clock=tools.clock,
        )
        self.sweep = Sweep(
            units=tools.units,
            intents=core.intents,
            operations=core.operations,
            quieting=quieting,
            release=release,
            conversations=conversations,
            connector=tools.connector,
            changes=core.changes,
            dirtiness=core.dirtiness,
            saving=core.saving,
            defaults=tools.lifecycle,
            deeds=tools.deeds,
            metrics=tools.lifecycle_metrics,
            clock=tools.clock,
        )
        self.sweeping = SweepLoop(
            self.sweep, duties=tools.duties, every=tools.sweep_every, metrics=tools.lifecycle_metrics
        )
        cold_starts = ColdStarts(limits=tools.starts, metrics=tools.pool_metrics)
        self.claims = PoolClaims(
            units=tools.units,
            backend=tools.backend,
            changes=core.changes,
            clock=tools.clock,
            replica=tools.replica,
        )
        self.refill = Refill(
            units=tools.units,
            backend=tools.backend,
            tokens=core.token_keeper,
            claims=self.claims,
            cold=cold_starts,
            metrics=tools.pool_metrics,
            clock=tools.clock,
            ids=tools.ids,
            replica=tools.replica,
            limits=tools.refill,
            deeds=tools.deeds,
            board=tools.pool_board,
        )
        self.claims.on_claim = self.refill.wake
        self._creation = Creation(
            intents=core.intents,
            operations=core.operations,
            requests=requests,
            startup=core.startup,
            admission=Admission(explicit=tools.explicit_registration),
            claims=self.claims,
            cold_starts=cold_starts,
            backend=tools.backend,
            metrics=tools.pool_metrics,
            clock=tools.clock,
            ids=tools.ids,
        )
        self.images = Images(
            units=tools.units,
            commits=core.commits,
            keeps_root=tools.backend.describe().keeps_root,
            requests=requests,
            changes=core.changes,
            metrics=tools.commit_metrics,
            clock=tools.clock,
            ids=tools.ids,
        )
        if core.backups is not None:
            core.backups.making.frozen = FrozenBackups(
                tools=core.backups.making.tools,
                stillness=Stillness(
                    units=tools.units,
                    intents=core.intents,
                    operations=core.operations,
                    freezing=core.freezing,
                    conversations=conversations,
                    changes=core.changes,
                    clock=tools.clock,
                ),
                metrics=tools.backup_metrics,
                clock=tools.clock,
            )
        self.backups = Backups(
            units=tools.units,
            room=core.backups,
            requests=requests,
            changes=core.changes,
            clock=tools.clock,
            ids=tools.ids,
        )
        self._reading = Reading(units=tools.units, changes=core.changes)
        self._editing = Editing(
            units=tools.units,
            requests=requests,
            admission=Admission(explicit=tools.explicit_registration),
            backend=tools.backend,
            changes=core.changes,
            clock=tools.clock,
        )
        self.resting = Resting(
            units=tools.units,
            intents=core.intents,
            operations=core.operations,
            requests=requests,
            startup=core.startup,
            release=release,
            quieting=quieting,
            conversations=conversations,
            saving=core.saving,
            clock=tools.clock,
        )
        self.restores = Restores(
            units=tools.units,
            intents=core.intents,
            operations=core.operations,
            requests=requests,
            startup=core.startup,
            backend=tools.backend,
            room=core.backups,
            admission=Admission(explicit=tools.explicit_registration),
            clock=tools.clock,
            ids=tools.ids,
        )
        self._rebuilding = Rebuilding(
            intents=core.intents,
            operations=core.operations,
            requests=requests,
            restores=self.restores,
            admission=Admission(explicit=tools.explicit_registration),
            clock=tools.clock,
            ids=tools.ids,
        )
        self.recovery = Recovery(
            units=tools.units,
            intents=core.intents,
            operations=core.operations,
            startup=core.startup,
            freezing=core.freezing,
            release=release,
            quieting=quieting,
            restoring=self.restores,
            losses=core.losses,
            backend=tools.backend,
            metrics=tools.metrics,
            clock=tools.clock,
            deeds=tools.deeds,
        )

        self._package_telling = PackageTelling(units=tools.units, changes=core.changes)
        self.package_watcher = PackageWatcher(
            units=tools.units,
            source=tools.packages,
            keeping=core.package_keeping,
            changes=core.changes,
            metrics=tools.package_metrics,
            clock=tools.clock,
            replica=tools.replica,
        )

    def backend(self) -> BackendDescription:
        """Where sandboxes are placed."""
        return self._core.tools.backend.describe()

    def startup(self, sandbox: Sandbox) -> StartReport | None:
        """How a sandbox came up, as far as this replica knows."""
        return self._creation.startup(sandbox)

    async def next_step(self, sandbox: Sandbox) -> NextStep | None:
        """What policy does next with a sandbox; see `RestPolicies.next_step`."""
        return await self._core.rest_policies.next_step(sandbox)

    def rest_notices(self, sandbox: SandboxId) -> AsyncIterator[RestNotice]:
        """What policy is about to do with a sandbox, as it becomes known; see `Announcements.follow`."""
        return self._core.announcements.follow(sandbox)

    def package_tidings(self, sandbox: SandboxId) -> AsyncIterator[PackageTidings]:
        """Which packages of a sandbox change, as it becomes known; see `PackageTelling.follow`."""
        return self._package_telling.follow(sandbox)

    async def create(self, request: Request, wish: NewSandbox, *, timeout: timedelta) -> Sandbox:
        """Make a sandbox; see `Creation.create`, and of one that begins with a backup `Rebuilding.create`."""
        if wish.from_backup is not None or wish.workspace_only:
            return await self._rebuilding.create(request, wish, timeout=timeout)
        return await self._creation.create(request, wish, timeout=timeout)

    async def get(self, caller: Caller, sandbox: SandboxId) -> Sandbox:
        """One sandbox; see `Reading.get`."""
        return await self._reading.get(caller, sandbox)

    async def list(
        self,
        caller: Caller,
        selection: Selection,
        *,
        order: SandboxOrder = SandboxOrder.CREATE_TIME,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Sandbox]:
        """One page of sandboxes; see `Reading.list`."""
        return await self._reading.list(caller, selection, order=order, page_size=page_size, page_token=page_token)

    def watch(self, caller: Caller, selection: Selection) -> AsyncIterator[SandboxChange]:
        """Sandboxes with every change; see `Reading.watch`."""
        return self._reading.watch(caller, selection)

    async def update(
        self, request: Request, sandbox: SandboxId, edit: SandboxEdit, *, timeout: timedelta, etag: str = ""
    ) -> Sandbox:
        """Change a sandbox; see `Editing.update`."""
        return await self._editing.update(request, sandbox, edit, etag=etag, timeout=timeout)

    async def pause(self, request: Request, sandbox: SandboxId, *, timeout: timedelta, force: bool = False) -> Sandbox:
        """Release a sandbox's compute; see `Resting.pause`."""
        return await self.resting.pause(request, sandbox, force=force, timeout=timeout)

    async def resume(self, request: Request, sandbox: SandboxId, *, timeout: timedelta) -> Sandbox:
        """Bring a sandbox back; see `Resting.resume`."""
        return await self.resting.resume(request, sandbox, timeout=timeout)

    async def terminate(
        self, request: Request, sandbox: SandboxId, *, timeout: timedelta, force: bool = False
    ) -> Settled:
        """End a sandbox; see `Resting.terminate`."""
        return await self.resting.terminate(request, sandbox, force=force, timeout=timeout)

    async def final_backup(self, sandbox: Sandbox) -> FinalBackup | None:
        """Say what a terminated sandbox is backed up as; None of one that is not terminated."""
        return await self.backups.final(sandbox)

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
        """Bring a sandbox back to what a backup has; see `Restores.restore`."""
        return await self.restores.restore(
            request, sandbox, backup=backup, paths=paths, workspace_only=workspace_only, timeout=timeout
        )

    async def hibernate(self, sandbox: SandboxId, *, timeout: timedelta) -> Sandbox:
        """Freeze an idle sandbox; see `Resting.hibernate`. Any use wakes it."""
        return await self.resting.hibernate(sandbox, timeout=timeout)

    async def run(self) -> None:
        """Keep leases, hints and tokens going and repair what crashes left, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._core.changes.run(), name="manager-changes")
            group.create_task(self._core.accounts.run(), name="manager-accounts")
            group.create_task(self._core.leases.run(), name="manager-leases")
            group.create_task(self._core.token_keeper.run(), name="manager-tokens")
            group.create_task(self.recovery.run(), name="manager-recovery")
            group.create_task(self.sweeping.run(), name="manager-sweep")
            group.create_task(self.refill.run(), name="manager-pools")
            group.create_task(self._core.announcements.run(), name="manager-announcements")
            group.create_task(self.package_watcher.run(), name="manager-packages")
            group.create_task(self._package_telling.run(), name="manager-package-tidings")
            if self._core.commits is not None:
                group.create_task(self._core.commits.run(), name="manager-commits")
                if self._core.tools.upgrade_bases is not None:
                    upgrades = AutoUpgrades.of(self._core.tools, self._core.commits, self._core.tools.upgrade_bases)
                    group.create_task(upgrades.run(), name="manager-base-upgrades")
            if self._core.backups is not None:
                group.create_task(self._core.backups.run(), name="manager-backups")

    async def run_for_a_sweep(self) -> None:
        """Keep going what a sweep from outside needs, until cancelled: no recovery, and no sweep of its own."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._core.changes.run(), name="manager-changes")
            group.create_task(self._core.leases.run(), name="manager-leases")
            if self._core.commits is not None:
                group.create_task(self._core.commits.tasks.run(), name="manager-commit-leases")

    async def drain(self, *, grace: timedelta) -> None:
        """Let running work end within the grace; the rest is for the recovery of whoever comes next."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._core.operations.drain(grace=grace), name="drain-operations")
            if self._core.commits is not None:
                group.create_task(self._core.commits.drain(grace=grace), name="drain-commits")
            if self._core.backups is not None:
                group.create_task(self._core.backups.drain(grace=grace), name="drain-backups")
        await self.claims.drain()
