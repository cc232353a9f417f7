"""The parts of the sandbox manager that need no conversations: the stream room, which is built before, uses some."""

from __future__ import annotations

from collections.abc import Callable

from sandboxd.manager.account_cache import AccountCache
from sandboxd.manager.announcing import Announcements
from sandboxd.manager.backing_up import BackingUp
from sandboxd.manager.backup_deletions import BackupDeletions
from sandboxd.manager.backup_keeping import BackupKeeping
from sandboxd.manager.backups import BackupRoom
from sandboxd.manager.base_building import BaseBuilding
from sandboxd.manager.changes import Changes
from sandboxd.manager.commits import Commits
from sandboxd.manager.drill_keeping import DrillKeeping
from sandboxd.manager.drilling import Drilling
from sandboxd.manager.freezing import Freezing
from sandboxd.manager.image_fallback import ImageFallback
from sandboxd.manager.image_trust import ImageTrust
from sandboxd.manager.intents import Intents
from sandboxd.manager.lease_keeping import LeaseKeeping
from sandboxd.manager.leased_tasks import LeasedTasks
from sandboxd.manager.lifecycle_ports import BackendDirtiness
from sandboxd.manager.losses import Losses
from sandboxd.manager.operations import Operations
from sandboxd.manager.package_keeping import PackageKeeping
from sandboxd.manager.rest_policy import RestPolicies
from sandboxd.manager.saving import RootSaving
from sandboxd.manager.startup import Startup
from sandboxd.manager.tokens import TokenKeeper
from sandboxd.manager.tools import ManagerTools
from sandboxd.manager.use import SandboxUse
from sandboxd.manager.volume_release import VolumeReleases


class ManagerCore:
    """The parts that need no conversations; the stream room gets its `use`."""

    def __init__(self, tools: ManagerTools) -> None:
        self.tools = tools
        units, clock, backend, connector = tools.units, tools.clock, tools.backend, tools.connector
        self.changes = Changes(wakeups=tools.wakeups)
        self.accounts = AccountCache(
            units=units, wakeups=tools.wakeups, clock=clock, explicit=tools.explicit_registration
        )
        self.dirtiness = BackendDirtiness(keeps_root=backend.describe().keeps_root, commits=tools.images is not None)
        self.rest_policies = RestPolicies(
            defaults=tools.lifecycle, policies=self.accounts, dirtiness=self.dirtiness, clock=clock
        )
        self.intents = Intents(
            units=units,
            clock=clock,
            ids=tools.ids,
            replica=tools.replica,
            changes=self.changes,
            lease=tools.lease,
        )
        self.leases = LeaseKeeping(units=units, lease=tools.lease)
        self.operations = Operations(
            intents=self.intents,
            leases=self.leases,
            clock=clock,
            metrics=tools.metrics,
            tracer=tools.tracer,
        )
        self.token_keeper = TokenKeeper(
            units=units,
            connector=connector,
            tokens=tools.tokens,
            target=tools.model_endpoint,
            metrics=tools.metrics,
            clock=clock,
        )
        self.startup = Startup(
            intents=self.intents,
            backend=backend,
            tokens=self.token_keeper,
            clock=clock,
            ids=tools.ids,
            fallback=ImageFallback(intents=self.intents, metrics=tools.commit_metrics, clock=clock, deeds=tools.deeds),
            trust=_trust(tools),
            tracer=tools.tracer,
        )
        self.freezing = Freezing(
            units=units,
            intents=self.intents,
            backend=backend,
            connector=connector,
            startup=self.startup,
            tokens=self.token_keeper,
            clock=clock,
        )
        self.losses = Losses(units=units, backend=backend, clock=clock, changes=self.changes, metrics=tools.metrics)
        self.announcements = Announcements(units=units, changes=self.changes)
        self.package_keeping = PackageKeeping(units=units, source=tools.packages, changes=self.changes, clock=clock)
        self.commits = (
            None
            if tools.images is None
            else Commits(
                units=units,
                images=tools.images,
                changes=self.changes,
                losses=self.losses,
                clock=clock,
                tasks=leased_tasks(tools, self.changes, on_count=tools.commit_metrics.running),
                metrics=tools.commit_metrics,
                packages=self.package_keeping,
                bases=BaseBuilding.of(tools, tools.images),
                deeds=tools.deeds,
                tracer=tools.tracer,
            )
        )
        self.saving = RootSaving(
            units=units,
            commits=self.commits,
            keeps_root=backend.describe().keeps_root,
            clock=clock,
            ids=tools.ids,
        )
        tools.commit_metrics.kept_here(self.saving.active)
        self.backups = _backup_room(tools, self.changes)
        self.use = SandboxUse(
            units=units,
            intents=self.intents,
            operations=self.operations,
            startup=self.startup,
            freezing=self.freezing,
            losses=self.losses,
            backend=backend,
            changes=self.changes,
            announcements=self.announcements,
            clock=clock,
        )


def leased_tasks(
    tools: ManagerTools, changes: Changes, *, on_count: Callable[[int], None] = lambda _: None
) -> LeasedTasks:
    """Build tasks under leases of this replica."""
    return LeasedTasks(
        units=tools.units,
        changes=changes,
        clock=tools.clock,
        ids=tools.ids,
        replica=tools.replica,
        lease=tools.lease,
        on_count=on_count,
    )


def _backup_room(tools: ManagerTools, changes: Changes) -> BackupRoom | None:
    if tools.backups is None:
        return None
    tasks = leased_tasks(tools, changes, on_count=tools.backup_metrics.running)
    making = BackingUp(
        units=tools.units,
        tools=tools.backups,
        tasks=tasks,
        changes=changes,
        clock=tools.clock,
        ids=tools.ids,
        metrics=tools.backup_metrics,
        deeds=tools.deeds,
    )
    deletions = BackupDeletions(
        units=tools.units,
        tools=tools.backups,
        tasks=tasks,
        changes=changes,
        clock=tools.clock,
        metrics=tools.backup_metrics,
        deeds=tools.deeds,
    )
    drilling = Drilling(
        units=tools.units,
        tools=tools.backups,
        tasks=leased_tasks(tools, changes),
        backend=tools.backend,
        connector=tools.connector,
        clock=tools.clock,
        ids=tools.ids,
        metrics=tools.drill_metrics,
        deeds=tools.deeds,
    )
    keeping = BackupKeeping(units=tools.units, making=making, deletions=deletions, duties=tools.duties)
    releases = VolumeReleases(
        units=tools.units,
        tools=tools.backups,
        tasks=leased_tasks(tools, changes),
        changes=changes,
        duties=tools.duties,
        clock=tools.clock,
        metrics=tools.backup_metrics,
        deeds=tools.deeds,
    )
    return BackupRoom(
        units=tools.units,
        making=making,
        deletions=deletions,
        keeping=keeping,
        releases=releases,
        drilling=drilling,
        drill_keeping=DrillKeeping(units=tools.units, drilling=drilling, duties=tools.duties),
    )


def _trust(tools: ManagerTools) -> ImageTrust | None:
    images = tools.images
    if images is None or images.signatures is None:
        return None
    return ImageTrust(signatures=images.signatures, policy=images.signature_policy, metrics=tools.commit_metrics)
