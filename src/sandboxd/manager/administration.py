"""Operating an installation: how it is, and by hand what it otherwise does by itself. For the platform alone."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from sandboxd.manager.push_holding import PushHolding
from sandboxd.manager.sweep import Planned
from sandboxd.model.errors import FieldViolation, InvalidRequestError, NotFoundError, SandboxdError
from sandboxd.model.push_hold import PushHold
from sandboxd.model.sandbox import SandboxState
from sandboxd.model.sources import Clock

MAX_NAMES: Final = 100
"""Names that one sweep tells at most."""

log = structlog.get_logger(__name__)


class Sweep(enum.Enum):
    """A kind of background work."""

    RECOVERY = "recovery"
    ORPHANS = "orphans"
    USAGE = "usage"
    RETENTION = "retention"
    LIFECYCLE = "lifecycle"
    IMAGES = "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """What a sweep would do with one image, or why it does not."""

    sandbox: str = ""
    """Empty where no row knows of it."""
    repository: str
    tags: Sequence[str]
    digest: str
    size: int = 0
    """Bytes of its own layer as it is kept; 0 where they are not known."""
    stays: str = ""
    """Why it stays, a constant word; empty where it goes."""
    by: str = ""
    """What names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What one sweep did."""

    done: int = 0
    """Things that it repaired, settled or forgot."""
    names: Sequence[str] = ()
    """Things that it found and leaves to people."""
    plans: Sequence[Planned] = ()
    """Of a dry run: what would be done."""
    images: Sequence[ImagePlan] = ()
    """Of a dry run: what would become of images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What became of one sweep."""

    sweep: Sweep
    swept: Swept = field(default_factory=Swept)
    failure: str = ""
    """A stable word; empty where it did not fail."""
    duration: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a replica knows of itself."""

    replica: str
    version: str
    conversations: int
    open_turns: int
    watchers: int
    agent_connections: int
    queued_appends: int
    database_used: int
    database_idle: int
    database_limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One replica, as the database knows it."""

    id: str
    address: str
    living: bool
    draining: bool
    conversations: int
    start_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """One gateway, as it last reported."""

    id: str
    version: str
    living: bool
    silence: timedelta
    circuit: str
    """`closed`, `open` or `half_open`; empty where it has not said."""
    open_calls: int
    spooled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallationStatus:
    """What all replicas see alike."""

    replicas: Sequence[ReplicaStatus]
    gateways: Sequence[GatewayStatus]
    sandboxes: Mapping[SandboxState, int]
    stuck: int
    push_hold: PushHold | None = None
    """Who holds pushes to the registry, or did, and has not released them."""


class Installation(Protocol):
    """The installation, as its database knows it. Every method may raise DatabaseUnavailableError."""

    async def status(self) -> InstallationStatus:
        """Everything at one look."""
        ...

    async def replicas(self) -> Sequence[ReplicaStatus]:
        """All replicas, oldest first."""
        ...

    async def mark_draining(self, replica: str, *, draining: bool) -> None:
        """Note for others that a replica drains, or does not any more."""
        ...

    async def reset_circuits(self, gateway: str) -> Sequence[str]:
        """Tell a gateway, or all living ones if empty, to close its circuit; answers who was told."""
        ...


class Doors(Protocol):
    """What a replica takes on."""

    async def close(self) -> int:
        """Take nothing new, end streams, hand conversations over; answers how many. Safe to repeat."""
        ...

    async def open(self) -> None:
        """Take new work again. Safe to repeat."""
        ...


class GatewayNotFoundError(NotFoundError):
    """No living gateway has this id."""

    reason = "GATEWAY_NOT_FOUND"

    def __init__(self, gateway: str) -> None:
        super().__init__(f"No living gateway has the id {gateway}. GetStatus lists them.", gateway=gateway)


class Administration:
    """What an operator asks of the replica that answers."""

    def __init__(
        self,
        *,
        installation: Installation,
        doors: Doors,
        sweeps: Mapping[Sweep, Callable[[], Awaitable[Swept]]],
        rehearsals: Mapping[Sweep, Callable[[], Awaitable[Swept]]],
        pushes: PushHolding,
        figures: Callable[[], Figures],
        clock: Clock,
    ) -> None:
        self._installation = installation
        self._doors = doors
        self._sweeps = sweeps
        self._rehearsals = rehearsals
        self.pushes = pushes
        """What holds pushes to the registry."""
        self._figures = figures
        self._clock = clock
        self.draining = False
        """True from a drain until the next undrain."""

    def here(self) -> Figures:
        """What this replica knows of itself."""
        return self._figures()

    async def status(self, *, timeout: timedelta) -> InstallationStatus | None:
        """How the installation is; None where the database does not answer."""
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                return await self._installation.status()
        except (SandboxdError, TimeoutError) as error:
            log.info("admin.status_unanswered", error=type(error).__name__)
            return None

    async def replicas(self) -> Sequence[ReplicaStatus]:
        """All replicas."""
        return await self._installation.replicas()

    async def sweep(
        self, wanted: Sequence[Sweep], *, timeout: timedelta, dry_run: bool = False
    ) -> Sequence[SweepResult]:
        """Run sweeps, one after the other, within the timeout for all; none named means all.

        Raises:
            InvalidRequestError: A dry run of a sweep that has none.
        """
        if dry_run and set(wanted) - set(self._rehearsals):
            problem = FieldViolation(field="dry_run", description="is for SWEEP_LIFECYCLE and SWEEP_IMAGES alone")
            raise InvalidRequestError("dry_run is for SWEEP_LIFECYCLE and SWEEP_IMAGES alone.", violations=[problem])
        wanted = wanted or (tuple(self._rehearsals) if dry_run else tuple(Sweep))
        end = self._clock.monotonic() + timeout.total_seconds()
        results = []
        for sweep in wanted:
            began = self._clock.monotonic()
            swept, failure = Swept(), ""
            try:
                async with asyncio.timeout(max(0.0, end - began)):
                    swept = await (self._rehearsals if dry_run else self._sweeps)[sweep]()
            except TimeoutError:
                failure = "DEADLINE_EXCEEDED"
            except SandboxdError as error:
                failure = error.reason
            spent = timedelta(seconds=self._clock.monotonic() - began)
            log.info("admin.swept", sweep=sweep.value, done=swept.done, found=len(swept.names), failure=failure)
            results.append(SweepResult(sweep=sweep, swept=swept, failure=failure, duration=spent))
        return results

    async def drain(self) -> int:
        """Hand over and take nothing new; answers how many conversations were handed over."""
        self.draining = True
        handed = await self._doors.close()
        await self._installation.mark_draining(self._figures().replica, draining=True)
        log.info("admin.drained", conversations=handed)
        return handed

    async def undrain(self) -> None:
        """Take new work again."""
        await self._doors.open()
        self.draining = False
        await self._installation.mark_draining(self._figures().replica, draining=False)
        log.info("admin.undrained")

    async def reset_circuits(self, gateway: str) -> Sequence[str]:
        """Let gateways call the model API again at once.

        Raises:
            GatewayNotFoundError: The one that is named does not live.
        """
        told = await self._installation.reset_circuits(gateway)
        if gateway and not told:
            raise GatewayNotFoundError(gateway)
        return told
