"""An installation for operators, in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic

from typing_extensions import override

from sandboxd.manager.abandoned import AbandonedLooks, AbandonedReport, NotAbandonedError, NotRemovableError
from sandboxd.manager.administration import (
    Administration,
    Figures,
    GatewayStatus,
    ImagePlan,
    InstallationStatus,
    ReplicaStatus,
    Sweep,
    Swept,
)
from sandboxd.manager.push_holding import PushHolding
from sandboxd.manager.sweep import Planned
from sandboxd.manager.verdicts import Act
from sandboxd.model.abandoned import Abandoned, AbandonedKind, AbandonedPolicy, AbandonedReason, Sighting, Thing
from sandboxd.model.errors import DatabaseUnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.model.lifecycle import LifecycleStep
from sandboxd.model.sandbox import SandboxState
from tests.fakes.push_holds import FakePushHolds

BORN = datetime(2026, 11, 28, 12, tzinfo=UTC)


class _Clock:
    def now(self) -> datetime:
        return BORN

    def monotonic(self) -> float:
        return monotonic()


@dataclass(kw_only=True)
class FakeAbandoned(AbandonedLooks):
    """One volume that no row knows of, and a namespace that sandboxd does not remove."""

    things: list[Thing] = field(
        default_factory=lambda: [
            Thing(kind=AbandonedKind.VOLUME, name="/kept/sbx-9", size_bytes=10**9, storage="local"),
            Thing(kind=AbandonedKind.NAMESPACE, name="client-gone", removable=False),
        ]
    )

    @override
    async def look(self, *, timeout: timedelta) -> AbandonedReport:
        policy, seen = AbandonedPolicy(prices={"*": 0.1}), Sighting(first_time=BORN, last_time=BORN)
        found = [policy.judged(one, AbandonedReason.NO_ROW, seen, place="the world") for one in self.things]
        return AbandonedReport(found=found, unasked={"the registry": "It does not answer."})

    @override
    async def remove(self, kind: AbandonedKind, name: str, *, timeout: timedelta) -> Abandoned:
        for one in (await self.look(timeout=timeout)).found:
            if (one.thing.kind, one.thing.name) == (kind, name):
                if not one.thing.removable:
                    raise NotRemovableError("Not here.")
                self.things.remove(one.thing)
                return one
        raise NotAbandonedError(f"No {kind.value} {name!r} is abandoned.")


@dataclass(kw_only=True)
class FakeInstallation:
    down: bool = False
    draining: dict[str, bool] = field(default_factory=dict)
    reset: list[str] = field(default_factory=list)
    gateways: tuple[str, ...] = ("gtw-1", "gtw-2")
    open_doors: bool = True
    sweeps: dict[Sweep, Callable[[], Awaitable[Swept]]] = field(default_factory=dict)
    ran: list[Sweep] = field(default_factory=list)
    holds: FakePushHolds = field(default_factory=FakePushHolds)
    abandoned: FakeAbandoned = field(default_factory=FakeAbandoned)

    def _weather(self) -> None:
        if self.down:
            raise DatabaseUnavailableError("The database does not answer. Try again in a moment.")

    async def status(self) -> InstallationStatus:
        self._weather()
        return InstallationStatus(
            replicas=await self.replicas(),
            gateways=[
                GatewayStatus(
                    id=name,
                    version="1",
                    living=True,
                    silence=timedelta(seconds=2),
                    circuit="closed" if name in self.reset else "open",
                    open_calls=3,
                    spooled=4,
                )
                for name in self.gateways
            ],
            sandboxes={SandboxState.ACTIVE: 7, SandboxState.FAILED: 0},
            stuck=1,
            push_hold=await self.holds.present(),
        )

    async def replicas(self) -> Sequence[ReplicaStatus]:
        self._weather()
        return [
            ReplicaStatus(
                id="here",
                address="127.0.0.1:1",
                living=True,
                draining=self.draining.get("here", False),
                conversations=5,
                start_time=BORN,
            )
        ]

    async def mark_draining(self, replica: str, *, draining: bool) -> None:
        self._weather()
        self.draining[replica] = draining

    async def reset_circuits(self, gateway: str) -> Sequence[str]:
        self._weather()
        told = [name for name in self.gateways if gateway in ("", name)]
        self.reset += told
        return told

    async def close(self) -> int:
        self.open_doors = False
        return 5

    async def open(self) -> None:
        self.open_doors = True

    async def rehearse(self) -> Swept:
        return Swept(
            plans=[
                Planned(
                    sandbox=SandboxId("sbx-1"),
                    client="acme",
                    state=SandboxState.ACTIVE,
                    step=LifecycleStep.HIBERNATE,
                    time=BORN,
                    act=Act.TAKE,
                    hindrance="ROOT_UNKNOWN",
                )
            ]
        )

    async def rehearse_images(self) -> Swept:
        goes = ImagePlan(sandbox="sbx-1", repository="acme/a", tags=["g000001"], digest="sha256:1", size=1500)
        stays = ImagePlan(
            repository="acme/a", tags=["g000007", "latest"], digest="sha256:7", stays="named", by="Pod acme/sbx-1-0"
        )
        return Swept(images=[goes, stays])

    def administration(self) -> Administration:
        def sweep(kind: Sweep) -> Callable[[], Awaitable[Swept]]:
            async def run() -> Swept:
                self.ran.append(kind)
                return await self.sweeps[kind]() if kind in self.sweeps else Swept(done=1)

            return run

        return Administration(
            installation=self,
            doors=self,
            sweeps={kind: sweep(kind) for kind in Sweep},
            rehearsals={Sweep.LIFECYCLE: self.rehearse, Sweep.IMAGES: self.rehearse_images},
            pushes=PushHolding(holds=self.holds, clock=_Clock(), pause=timedelta(milliseconds=20)),
            figures=lambda: Figures(
                replica="here",
                version="1",
                conversations=5,
                open_turns=2,
                watchers=1,
                agent_connections=4,
                queued_appends=0,
                database_used=1,
                database_idle=2,
                database_limit=15,
            ),
            clock=_Clock(),
        )
