"""What is seen of one replica: its registry with all metrics, its tracer, and the loops that measure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog
from prometheus_client import CollectorRegistry

from sandboxd import __version__
from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.bootstrap.tracing import make_tracer
from sandboxd.manager.abandoned_metrics import AbandonedMetrics
from sandboxd.manager.administration import Figures
from sandboxd.manager.backup_metrics import BackupMetrics
from sandboxd.manager.commit_metrics import CommitMetrics
from sandboxd.manager.drill_metrics import DrillMetrics
from sandboxd.manager.image_care_metrics import ImageCareMetrics
from sandboxd.manager.lifecycle_metrics import LifecycleMetrics
from sandboxd.manager.metrics import ManagerMetrics
from sandboxd.manager.package_metrics import PackageMetrics
from sandboxd.manager.pool_metrics import PoolMetrics
from sandboxd.manager.push_hold_metrics import PushHoldMetrics
from sandboxd.model.errors import UnavailableError
from sandboxd.model.trace import Tracer
from sandboxd.monitor.process_metrics import ProcessMetrics
from sandboxd.persistence.census import count_sandboxes
from sandboxd.persistence.engine import Database
from sandboxd.persistence.metrics import DatabaseMetrics
from sandboxd.persistence.push_holds import PostgresPushHolds
from sandboxd.settings import Settings
from sandboxd.stream.custody import Custody
from sandboxd.stream.feed import EventFeed
from sandboxd.stream.group_commit import GroupCommit
from sandboxd.stream.metrics import StreamMetrics

log = structlog.get_logger("sandboxd.bootstrap")

CENSUS_SECONDS: Final = 30.0
"""How often a replica counts the sandboxes: one statement over an index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The eyes of `serve`."""

    tracer: Tracer
    send_traces: Callable[[], None]
    """Sends what waits; blocks."""
    registry: CollectorRegistry
    process: ProcessMetrics
    manager: ManagerMetrics
    lifecycle: LifecycleMetrics
    pools: PoolMetrics
    packages: PackageMetrics
    commits: CommitMetrics
    backups: BackupMetrics
    drills: DrillMetrics
    image_care: ImageCareMetrics
    push_hold: PushHoldMetrics
    abandoned: AbandonedMetrics
    stream: StreamMetrics

    @staticmethod
    def of(settings: Settings) -> Observation:
        """Open them as the settings say."""
        tracer, send = make_tracer(settings, role="serve")
        registry = CollectorRegistry()
        return Observation(
            tracer=tracer,
            send_traces=send,
            registry=registry,
            process=ProcessMetrics(registry, role="serve", version=__version__),
            manager=ManagerMetrics(registry),
            lifecycle=LifecycleMetrics(registry),
            pools=PoolMetrics(registry),
            packages=PackageMetrics(registry),
            commits=CommitMetrics(registry),
            backups=BackupMetrics(registry),
            drills=DrillMetrics(registry),
            image_care=ImageCareMetrics(registry),
            push_hold=PushHoldMetrics(registry),
            abandoned=AbandonedMetrics(registry),
            stream=StreamMetrics(registry),
        )

    def look_at(
        self,
        *,
        database: Database,
        custody: Custody,
        feed: EventFeed,
        commit: GroupCommit,
        connector: GrpcAgentConnector,
    ) -> None:
        """Read what these parts know of themselves whenever somebody asks for the metrics."""
        database.waited = DatabaseMetrics(self.registry, database.engine).waited
        self.stream.owned.set_function(lambda: custody.owned)
        self.stream.open_turns.set_function(lambda: custody.open_turns)
        self.stream.watchers.set_function(lambda: feed.watchers)
        self.stream.queued.set_function(lambda: commit.queued)
        self.stream.agents.set_function(lambda: connector.connections)

    def figures(self, *, replica: str, version: str) -> Figures:
        """What this replica knows of itself, for operators: the same numbers as in its metrics."""

        def shown(name: str, **labels: str) -> int:
            return int(self.registry.get_sample_value(name, labels) or 0)

        return Figures(
            replica=replica,
            version=version,
            conversations=shown("sandboxd_conversations_owned"),
            open_turns=shown("sandboxd_open_turns"),
            watchers=shown("sandboxd_stream_watchers"),
            agent_connections=shown("sandboxd_agent_connections"),
            queued_appends=shown("sandboxd_journal_queued_entries"),
            database_used=shown("sandboxd_database_connections", state="used"),
            database_idle=shown("sandboxd_database_connections", state="idle"),
            database_limit=shown("sandboxd_database_connections_limit"),
        )

    async def run(self, database: Database) -> None:
        """Measure until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.process.run(), name="loop-lag")
            tasks.create_task(self._count(database), name="census")

    async def _count(self, database: Database) -> None:
        while True:
            try:
                census = await count_sandboxes(database)
                self.manager.census(census.states, stuck=census.stuck)
                self.push_hold.seen(await PostgresPushHolds(database).present(), at=datetime.now(UTC))
                self.packages.dirty(sandboxes=census.dirty, oldest_seconds=census.oldest_dirty.total_seconds())
            except UnavailableError as error:
                log.info("census.unanswered", error=error.message)
            await asyncio.sleep(CENSUS_SECONDS)
