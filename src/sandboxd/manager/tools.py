"""What the sandbox manager is given: every dependency of its parts, joined by `bootstrap` and by the tests' worlds."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from prometheus_client import CollectorRegistry

from sandboxd.manager.backend_port import Backend
from sandboxd.manager.backup_metrics import BackupMetrics
from sandboxd.manager.backup_tools import BackupTools
from sandboxd.manager.commit_metrics import CommitMetrics
from sandboxd.manager.commit_steps import ImageTools
from sandboxd.manager.drill_metrics import DrillMetrics
from sandboxd.manager.intents import LEASE
from sandboxd.manager.lifecycle_metrics import LifecycleMetrics
from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.manager.metrics import ManagerMetrics
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.package_metrics import PackageMetrics
from sandboxd.manager.package_ports import PackageSource
from sandboxd.manager.pool_metrics import PoolMetrics
from sandboxd.manager.pool_ports import PoolBoard
from sandboxd.manager.pools import MEMBERS_PER_CLIENT
from sandboxd.manager.ports import ModelTokens, UnitsOfWork
from sandboxd.manager.tokens import ModelEndpointTarget
from sandboxd.model.lifecycle import LifecyclePolicy
from sandboxd.model.pool import RefillLimits, StartLimits
from sandboxd.model.replay import ReplayPolicy
from sandboxd.model.sources import Clock, IdSource
from sandboxd.model.trace import NO_TRACES, Tracer
from sandboxd.stream.agent_port import AgentConnector
from sandboxd.stream.ports import Wakeups


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerTools:
    """What every part of the manager works with."""

    units: UnitsOfWork
    backend: Backend
    connector: AgentConnector
    wakeups: Wakeups
    tokens: ModelTokens
    model_endpoint: ModelEndpointTarget
    metrics: ManagerMetrics
    clock: Clock
    ids: IdSource
    explicit_registration: bool = False
    """True where clients and freelancers must be made before they act."""
    replica: str
    """Id of this replica: the one whose advisory lock is held while it lives."""
    lease: timedelta = LEASE
    """How long the work on a sandbox is ours without a sign of life."""
    tracer: Tracer = NO_TRACES
    deeds: OwnDeeds = UNRECORDED
    """Where the service's own work is put on record."""
    lifecycle: LifecyclePolicy = field(default_factory=LifecyclePolicy)
    """When sandboxes rest whose clients do not wish otherwise."""
    duties: Duties
    lifecycle_metrics: LifecycleMetrics
    sweep_every: timedelta = timedelta(0)
    """How often sandboxes whose time has come are looked for here; zero leaves that to others."""
    pool_metrics: PoolMetrics = field(default_factory=lambda: PoolMetrics(CollectorRegistry()))
    starts: StartLimits = field(default_factory=StartLimits)
    """How many sandboxes this replica starts at once."""
    refill: RefillLimits = field(default_factory=RefillLimits)
    """How fast pools are filled."""
    pool_members_per_client: int = MEMBERS_PER_CLIENT
    """How large the pools of a client may be together."""
    pool_board: PoolBoard | None = None
    """Where people look at pools beside the API."""
    packages: PackageSource
    package_metrics: PackageMetrics = field(default_factory=lambda: PackageMetrics(CollectorRegistry()))
    images: ImageTools | None = None
    """What root file systems are committed with; None where nothing is kept."""
    backups: BackupTools | None = None
    """What sandboxes are backed up with; None where no backups are kept."""
    backup_metrics: BackupMetrics = field(default_factory=lambda: BackupMetrics(CollectorRegistry()))
    drill_metrics: DrillMetrics = field(default_factory=lambda: DrillMetrics(CollectorRegistry()))
    upgrade_bases: ReplayPolicy | None = None
    """What happens where something cannot be made again when resting sandboxes get the template's present base by
    themselves; None: they do not."""
    commit_metrics: CommitMetrics = field(default_factory=lambda: CommitMetrics(CollectorRegistry()))
