"""The Kubernetes backend: writes what a sandbox should be, and waits for what the operator and the cluster make of it.

Nothing here makes a pod or a volume. Every write names the incarnation that it saw, so that of two services that work
on one sandbox the later one is refused and not obeyed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Final

import structlog
from typing_extensions import override

from sandboxd.backends.kubernetes.figures import Figures
from sandboxd.backends.kubernetes.image_probe import KubernetesProbe
from sandboxd.backends.kubernetes.mirror import Mirror
from sandboxd.backends.kubernetes.objects import Installation, SandboxObjects, lost_pod
from sandboxd.backends.kubernetes.placed import Placed, gpus_of, quantities
from sandboxd.backends.kubernetes.recipe import Recipe
from sandboxd.backends.kubernetes.refusals import ClusterUnavailableError, translated
from sandboxd.backends.kubernetes.removal import Removal
from sandboxd.backends.kubernetes.running_images import KubernetesImages
from sandboxd.backends.kubernetes.starting import Starting
from sandboxd.kubeapi.errors import KubeError, KubeUnavailableError
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.manager.agents import visit
from sandboxd.manager.backend_port import (
    Backend,
    BackendDescription,
    FilesSize,
    Observation,
    RunningIncarnation,
    SandboxSpec,
    Told,
    untold,
)
from sandboxd.model.cluster import Mode, PlacedResources, PlacedSpec
from sandboxd.model.errors import DeadlineError, SandboxdError, UnavailableError
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.model.sources import Clock
from sandboxd.model.startup import StartReport
from sandboxd.stream.agent_port import AgentConnector
from sandboxd.stream.ports import CliPlace

SHUTDOWN_SPARE: Final = timedelta(seconds=3)
"""What an agent's shutdown may take beyond its grace; the pod's end follows in any case."""
RETRY_SECONDS: Final = 0.5
"""Pause before a request is repeated that the API server did not answer."""
PLACE_TIMEOUT: Final = timedelta(seconds=1)
"""How long an API server that says nothing may hold a conversation up."""
REMEMBERED_REPORTS: Final = 1_000

log = structlog.get_logger(__name__)


class KubernetesBackend(Backend):
    """Places sandboxes as `Sandbox` resources. `run` must run beside it."""

    def __init__(
        self,
        *,
        api: KubeApi,
        installation: Installation,
        place: CliPlace,
        connector: AgentConnector,
        clock: Clock,
    ) -> None:
        """Take what it works with.

        Args:
            api: Reaches the cluster.
            installation: What is ours in it.
            place: Where the CLI is in every sandbox.
            connector: Reaches agents.
            clock: The time.
        """
        self._installation = installation
        self._place = place
        self._connector = connector
        self._clock = clock
        self._objects = SandboxObjects(api, installation)
        self._mirror = Mirror(api, instance=installation.instance)
        self._recipe = Recipe(api, template=installation.template, premium_gpus=installation.premium_gpus)
        self._figures = Figures(objects=self._objects, connector=connector)
        self._removal = Removal(objects=self._objects, mirror=self._mirror, clock=clock)
        self._starting = Starting(
            objects=self._objects,
            mirror=self._mirror,
            connector=connector,
            clock=clock,
            removal=self._removal,
            instance=installation.instance,
        )
        self.images = KubernetesImages(
            objects=self._objects,
            mirror=self._mirror,
            template=installation.template,
            base=lambda: self._recipe.image,
        )
        """Which images its sandboxes run from, and are to run from."""
        self.probe = KubernetesProbe(
            api,
            objects=self._objects,
            mirror=self._mirror,
            instance=installation.instance,
            clock=clock,
            name=lambda: secrets.token_hex(8),
        )
        """Boots images before anybody starts from them."""
        self._reports: OrderedDict[IncarnationId, StartReport] = OrderedDict()

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._mirror.run(), name="mirror-sandboxes")
            tasks.create_task(self._recipe.run(), name="mirror-template")

    @override
    def describe(self) -> BackendDescription:
        return BackendDescription(name="kubernetes", isolates=True, recipe=self._recipe.text)

    @override
    async def start(
        self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta, pulling: Told = untold
    ) -> AgentEndpoint:
        deadline = self._clock.monotonic() + timeout.total_seconds()
        wanted = PlacedSpec(
            client=spec.client,
            freelancer=spec.freelancer,
            incarnation=incarnation,
            tier=spec.tier,
            resources=self._resources(spec),
            template=self._installation.template,
            image=spec.image,
            pool=spec.pool,
            recipe=spec.recipe,
        )
        while True:
            try:
                endpoint, report = await self._starting.start(spec.sandbox, wanted, deadline=deadline, pulling=pulling)
            except KubeUnavailableError as error:
                # Every step is safe to repeat, and a short absence of the API server must not fail a sandbox.
                if deadline - self._clock.monotonic() <= RETRY_SECONDS:
                    raise translated(
                        error, f"Sandbox {spec.sandbox} cannot be started", sandbox=spec.sandbox
                    ) from error
                await asyncio.sleep(RETRY_SECONDS)
            except KubeError as error:
                raise translated(error, f"Sandbox {spec.sandbox} cannot be started", sandbox=spec.sandbox) from error
            else:
                if report is not None:
                    self._reports[incarnation] = report
                    if len(self._reports) > REMEMBERED_REPORTS:
                        self._reports.popitem(last=False)
                return endpoint

    @override
    async def adopt(self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        async with self._asking(spec.sandbox, "cannot be adopted"):
            placed = await self._find(spec.sandbox)
            if placed is None or placed.spec.incarnation != incarnation or placed.spec.freelancer == spec.freelancer:
                return
            await self._objects.change(placed, {"freelancer": spec.freelancer}, timeout=timeout)

    @override
    def startup(self, incarnation: IncarnationId) -> StartReport | None:
        return self._reports.get(incarnation)

    @override
    async def stop(
        self, sandbox: SandboxId, incarnation: IncarnationId, *, grace: timedelta, timeout: timedelta
    ) -> None:
        deadline = self._clock.monotonic() + timeout.total_seconds()
        async with self._asking(sandbox, "cannot be stopped"):
            placed = await self._find(sandbox)
            if placed is None or placed.spec.incarnation != incarnation:
                return
            if placed.spec.mode is not Mode.STOPPED:
                if placed.alive(incarnation) and placed.endpoint is not None:
                    await self._shut_down(placed, placed.endpoint, grace=grace)
                placed = await self._objects.set_mode(placed, Mode.STOPPED)
            await self._starting.until_stopped(placed, deadline=deadline)

    @override
    async def resize(self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        async with self._asking(spec.sandbox, "cannot be resized"), asyncio.timeout(timeout.total_seconds()):
            placed = await self._find(spec.sandbox)
            if placed is None or placed.leaving or placed.spec.incarnation != incarnation:
                return  # the next start writes the whole spec
            wanted = replace(placed.spec, tier=spec.tier, resources=self._resources(spec))
            changes = wanted.as_mapping()
            # The operator resizes the pod in place and grows claims where it can; GPUs wait for the next start.
            await self._objects.change(placed, {name: changes[name] for name in ("tier", "resources")})

    @override
    async def shrink(self, sandbox: SandboxId, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        await self._switch(sandbox, incarnation, Mode.RUNNING, Mode.HIBERNATED, timeout=timeout)

    @override
    async def grow(self, sandbox: SandboxId, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        await self._switch(sandbox, incarnation, Mode.HIBERNATED, Mode.RUNNING, timeout=timeout)

    async def _switch(
        self, sandbox: SandboxId, incarnation: IncarnationId, before: Mode, after: Mode, *, timeout: timedelta
    ) -> None:
        async with self._asking(sandbox, "cannot be resized"), asyncio.timeout(timeout.total_seconds()):
            placed = await self._find(sandbox)
            if placed is None or placed.leaving or (placed.spec.incarnation, placed.spec.mode) != (incarnation, before):
                return
            # Only from that mode: one that is being stopped meanwhile must not come back.
            await self._objects.change(placed, {"mode": after.value}, unless_changed=("mode",))

    @override
    async def remove(self, sandbox: SandboxId, *, timeout: timedelta) -> str:
        deadline = self._clock.monotonic() + timeout.total_seconds()
        async with self._asking(sandbox, "cannot be removed"):
            placed = await self._find(sandbox)
            if placed is not None:
                await self._removal.remove(placed, kept=True, deadline=deadline)
            return await self._removal.where_kept(sandbox)

    @override
    async def erase(self, sandbox: SandboxId, *, timeout: timedelta) -> None:
        deadline = self._clock.monotonic() + timeout.total_seconds()
        async with self._asking(sandbox, "cannot be erased"):
            placed = await self._find(sandbox)
            if placed is not None:
                await self._removal.remove(placed, kept=False, deadline=deadline)
            await self._removal.destroy_claims(sandbox, deadline=deadline)

    @override
    async def measure(self, sandbox: SandboxId, *, timeout: timedelta) -> FilesSize:
        async with self._asking(sandbox, "cannot be measured"), asyncio.timeout(timeout.total_seconds()):
            placed = await self._find(sandbox)
            if placed is not None and placed.alive() and placed.endpoint is not None:
                try:
                    return await self._figures.count(placed.endpoint, timeout=timeout / 2)
                except SandboxdError as error:
                    log.info("cluster.files_not_counted", sandbox=sandbox, error=error.message)
            return await self._figures.recorded(sandbox)

    @override
    async def observe(self, sandbox: SandboxId) -> Observation:
        async with self._asking(sandbox, "cannot be observed"):
            placed = await self._find(sandbox)
            if placed is None:
                return Observation(sandbox=sandbox, present=False, running=[])
            if not placed.alive() or not placed.status.pod_uid:
                return _observation(placed)
            # The status is the operator's last word, and the operator may be down: the pod itself is asked.
            lost = lost_pod(placed, await self._objects.pod(placed))
        if not lost:
            return _observation(placed)
        log.info("cluster.incarnation_lost", sandbox=sandbox, incarnation=placed.status.incarnation, why=lost)
        return Observation(sandbox=sandbox, present=not placed.leaving, running=[])

    @override
    async def list(self) -> Sequence[Observation]:
        placed = sorted(await self._mirror.all(), key=lambda one: one.sandbox)
        return [_observation(one) for one in placed]

    @override
    async def place(self, sandbox: SandboxId, incarnation: IncarnationId) -> CliPlace:
        placed = self._mirror.get(sandbox)
        if placed is None or not placed.alive(incarnation):
            try:
                async with self._asking(sandbox, "cannot be found"):
                    placed = await self._find(sandbox, timeout=PLACE_TIMEOUT)
            except ClusterUnavailableError:
                # The same in every pod; whether it runs, its agent tells: sessions need no API server.
                return self._place
        if placed is None or not placed.alive(incarnation):
            raise UnavailableError(f"Sandbox {sandbox} is not running.", sandbox=sandbox, incarnation=incarnation)
        return self._place

    def _resources(self, spec: SandboxSpec) -> PlacedResources:
        gpus = gpus_of(spec.tier, premium_gpus=self._installation.premium_gpus)
        return quantities(spec.resources, gpus=gpus)

    async def _find(self, sandbox: SandboxId, *, timeout: timedelta | None = None) -> Placed | None:
        """The resource as the API server has it now; the mirror only says where to look."""
        known = self._mirror.get(sandbox)
        found = None if known is None else await self._objects.get(known.namespace, sandbox, timeout=timeout)
        return found or await self._objects.search(sandbox, timeout=timeout)

    async def _shut_down(self, placed: Placed, endpoint: AgentEndpoint, *, grace: timedelta) -> None:
        """Let the agent end its processes in order; the pod ends afterwards in any case."""
        await self._figures.record_last(placed.sandbox, endpoint)
        try:
            async with visit(self._connector, endpoint) as agent:
                await agent.shutdown(grace=grace, timeout=grace + SHUTDOWN_SPARE)
        except SandboxdError as error:
            log.warning("backend.shutdown_refused", sandbox=placed.sandbox, error=error.message)

    @asynccontextmanager
    async def _asking(self, sandbox: SandboxId, what: str) -> AsyncIterator[None]:
        try:
            yield
        except KubeError as error:
            raise translated(error, f"Sandbox {sandbox} {what}", sandbox=sandbox) from error
        except TimeoutError as error:
            raise DeadlineError(f"Sandbox {sandbox} {what} in the time that was given.", sandbox=sandbox) from error


def _observation(placed: Placed) -> Observation:
    running = []
    if placed.alive():
        running = [RunningIncarnation(incarnation=IncarnationId(placed.status.incarnation), endpoint=placed.endpoint)]
    return Observation(
        sandbox=placed.sandbox,
        present=not placed.leaving,
        tier=placed.spec.tier,
        shrunk=placed.spec.mode is Mode.HIBERNATED,
        running=running,
    )
