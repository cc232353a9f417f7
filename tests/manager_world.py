"""Replicas of the manager over one database and one backend, all in memory."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from itertools import count

from prometheus_client import CollectorRegistry

from sandboxd.images.signing import SignaturePolicy
from sandboxd.manager.backup_tools import BackupTools
from sandboxd.manager.commit_steps import ImageTools
from sandboxd.manager.creation import NewSandbox
from sandboxd.manager.lifecycle_metrics import LifecycleMetrics
from sandboxd.manager.metrics import ManagerMetrics
from sandboxd.manager.sandboxes import ManagerCore, SandboxManager
from sandboxd.manager.tokens import ModelEndpointTarget
from sandboxd.manager.tools import ManagerTools
from sandboxd.model.backup import BackupMethod
from sandboxd.model.backup_retention import BackupRetention
from sandboxd.model.caller import Caller, Request, Role
from sandboxd.model.ids import ClientId, RequestId, SandboxId
from sandboxd.model.image_names import user_repository
from sandboxd.model.lifecycle import LifecyclePolicy
from sandboxd.model.sandbox import Incarnation, Sandbox
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.baselines import FakeBaselines
from tests.fakes.image_keys import new_signatures
from tests.fakes.images import FakeImageBuilder, FakeImageProbe, FakeRunningImages
from tests.fakes.kept_volumes import FakeKeptVolumes
from tests.fakes.lifecycle import FakeDuties
from tests.fakes.manager import FakeBackend, FakeClock, FakeConversations, FakeIds, FakeTokens, FakeUnits, FakeWakeups
from tests.fakes.packages import FakePackageSource
from tests.fakes.registry import FakeRegistry
from tests.fakes.volume_backups import FakeVolumeBackups

SOON = timedelta(seconds=5)
NOW = timedelta(0)
GATEWAY = "http://gateway.test"
_requests = count(1)


def a_caller(*, client: str = "acme", subject: str = "ada", role: Role = Role.PLATFORM) -> Caller:
    return Caller(client=ClientId(client), subject=subject, role=role)


def a_request(caller: Caller | None = None, *, request_id: str = "", body: str = "body") -> Request:
    return Request(
        caller=caller or a_caller(),
        request_id=RequestId(request_id or f"request-{next(_requests)}"),
        body_hash=hashlib.sha256(body.encode()).digest(),
    )


class ManagerWorld:
    """What the replicas share, and the first of them."""

    def __init__(
        self,
        lifecycle: LifecyclePolicy | None = None,
        *,
        keeps_root: bool = True,
        commits: bool = False,
        backups: bool = False,
        backup_method: BackupMethod = BackupMethod.FILES,
        signing: bool = False,
        signatures: SignaturePolicy | None = None,
        retention: BackupRetention | None = None,
        release_after: timedelta = timedelta(0),
    ) -> None:
        self.lifecycle = lifecycle or LifecyclePolicy()
        self.retention = retention or BackupRetention()
        self.duties: dict[str, tuple[str, int]] = {}
        self.clock = FakeClock()
        self.ids = FakeIds(self.clock)
        self.units = FakeUnits(self.clock)
        self.connector = FakeAgentConnector()
        self.backend = FakeBackend(self.connector)
        self.backend.keeps_root = keeps_root
        self.conversations = FakeConversations()
        self.wakeups = FakeWakeups()
        self.packages = FakePackageSource()
        self.registry = FakeRegistry()
        self.baselines = FakeBaselines()
        self.builder = FakeImageBuilder(self.registry, self.baselines)
        self.probe = FakeImageProbe()
        self.running = FakeRunningImages(self.backend)
        self.image_tools = ImageTools(
            builder=self.builder,
            probe=self.probe,
            running=self.running,
            registry=self.registry,
            baselines=self.baselines,
            repository_of=user_repository,
            capture_pause=timedelta(0),
            signature_policy=signatures or SignaturePolicy.NEVER,
        )
        if signing:
            self.image_tools = replace(self.image_tools, signatures=new_signatures(self.registry))
        self.commits = commits
        self.volumes = FakeVolumeBackups(
            now=self.clock.now, runs=lambda sandbox: bool(self.backend.running.get(sandbox))
        )
        self.kept = FakeKeptVolumes(volumes=self.volumes, runs=lambda sandbox: sandbox in self.backend.files)
        self.release_after = release_after
        self.backend.on_erase = lambda sandbox: self.volumes.volumes.pop(sandbox, None)
        self.backups = backups
        self.backup_method = backup_method
        self.core, self.manager = self.replica("first")
        self.use = self.core.use

    def replica(self, name: str) -> tuple[ManagerCore, SandboxManager]:
        tools = ManagerTools(
            units=self.units,
            backend=self.backend,
            connector=self.connector,
            wakeups=self.wakeups,
            tokens=FakeTokens(self.clock),
            model_endpoint=ModelEndpointTarget(base_url=GATEWAY),
            metrics=ManagerMetrics(CollectorRegistry()),
            clock=self.clock,
            ids=self.ids,
            replica=name,
            duties=FakeDuties(self.duties, replica=name),
            lifecycle_metrics=LifecycleMetrics(CollectorRegistry()),
            lifecycle=self.lifecycle,
            packages=self.packages,
            images=self.image_tools if self.commits else None,
            backups=self.backup_tools() if self.backups else None,
        )
        core = ManagerCore(tools)
        if core.backups is not None:
            core.backups.making.report_every = timedelta(milliseconds=20)
        if core.commits is not None:
            core.commits.report_every = timedelta(milliseconds=20)
        return core, SandboxManager(core=core, conversations=self.conversations)

    def backup_tools(self) -> BackupTools:
        return BackupTools(
            volumes=self.volumes,
            method=self.backup_method,
            retention=self.retention,
            every=timedelta(days=1),
            kept=self.kept,
            release_after=self.release_after,
        )

    async def given_active(self, caller: Caller | None = None, wish: NewSandbox | None = None) -> Sandbox:
        return await self.manager.create(a_request(caller), wish or NewSandbox(), timeout=SOON)

    async def given_paused(self) -> Sandbox:
        sandbox = await self.given_active()
        return await self.manager.pause(a_request(), sandbox.id, timeout=SOON)

    def row(self, sandbox: SandboxId) -> Sandbox:
        return self.units.rows.sandboxes[sandbox]

    def lives(self, sandbox: SandboxId) -> list[Incarnation]:
        rows = self.units.rows.incarnations.values()
        return sorted((row for row in rows if row.sandbox == sandbox), key=lambda row: row.number)

    def crash(self, replica: str = "first") -> None:
        """The replica dies: its advisory lock is free."""
        self.units.dead_replicas.add(replica)
