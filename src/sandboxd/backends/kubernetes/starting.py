"""Brings an incarnation up: the resource written, the shared watch awaited, the agent reached; and awaits its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import structlog

from sandboxd.backends.kubernetes.image_trouble import LISTEN_PATIENCE, image_broken, listens
from sandboxd.backends.kubernetes.mirror import Mirror
from sandboxd.backends.kubernetes.objects import SandboxObjects, lost_pod
from sandboxd.backends.kubernetes.placed import Placed
from sandboxd.backends.kubernetes.reaching import reach
from sandboxd.backends.kubernetes.refusals import SupersededError, lateness, patience_of, refusal
from sandboxd.backends.kubernetes.removal import Removal
from sandboxd.backends.kubernetes.watch_of_start import WatchOfStart
from sandboxd.kubeapi.errors import KubeConflictError, KubeError
from sandboxd.model.boot_step import BootStep
from sandboxd.model.cluster import Mode, PlacedSpec
from sandboxd.model.cluster_status import ConditionType, PlacedState, Reason
from sandboxd.model.errors import DeadlineError, SandboxdError
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.image_errors import ImageBrokenError
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.model.sources import Clock
from sandboxd.model.startup import StartReport
from sandboxd.stream.agent_port import AgentConnector

EVENTS_TIMEOUT: Final = timedelta(seconds=1)
"""How long the kubelet's words on images are waited for; without them the path is told as `local`."""

_Answer = AgentEndpoint | SandboxdError

log = structlog.get_logger(__name__)


class Starting:
    """Starts, and waits."""

    def __init__(
        self,
        *,
        objects: SandboxObjects,
        mirror: Mirror,
        connector: AgentConnector,
        clock: Clock,
        removal: Removal,
        instance: str,
    ) -> None:
        self._removal = removal
        self._objects = objects
        self._mirror = mirror
        self._connector = connector
        self._clock = clock
        self._instance = instance
        self.listen_patience = LISTEN_PATIENCE

    async def start(
        self, sandbox: SandboxId, wanted: PlacedSpec, *, deadline: float
    ) -> tuple[AgentEndpoint, StartReport | None]:
        """Make the sandbox run this incarnation, until its agent answers; the report is None where it ran already.

        Raises:
            KubeError: The API refused, or does not answer; safe to repeat.
            SandboxdError: It cannot come about; the message says why.
        """
        watch = WatchOfStart(began=self._clock.monotonic())
        placed = None
        if self._mirror.get(sandbox) is None:
            try:
                placed = await self._objects.create(sandbox, wanted)
            except KubeConflictError as error:
                if error.reason != "AlreadyExists":
                    raise
        if placed is None:
            placed = await self._again(sandbox, wanted, deadline=deadline)
        try:
            return await self._until_answering(placed, watch, deadline=deadline)
        except ImageBrokenError:
            # Nothing replaces a pod that never started: it goes, so that a start from another image finds its place.
            await self._let_go(placed)
            raise

    async def _let_go(self, placed: Placed) -> None:
        try:
            await self._objects.set_mode(placed, Mode.STOPPED)
        except KubeError as error:  # the next start ends it: it names another incarnation
            log.warning("cluster.broken_image_left", sandbox=placed.sandbox, error=error.message)

    async def until_stopped(self, placed: Placed, *, deadline: float) -> Placed | None:
        """Wait until no pod of the sandbox is left; None where the whole sandbox has gone meanwhile.

        Raises:
            DeadlineError: One still is.
        """
        known = False

        def look(seen: Placed | None) -> tuple[Placed | None] | None:
            nonlocal known
            if seen is None or seen.uid != placed.uid:
                return (None,) if known else None  # no more; or not yet, as the mirror is a little late
            known = True
            if seen.generation < placed.generation:
                return None
            if seen.spec.mode is not Mode.STOPPED:
                return (seen,)  # somebody has started it again
            return (seen,) if seen.taken_up and seen.status.state is PlacedState.STOPPED else None

        left = self._left(deadline)
        found = await self._mirror.wait(placed.sandbox, look, seconds=left)
        if found is None:
            last = self._mirror.get(placed.sandbox) or placed
            raise DeadlineError(
                lateness(last, seconds=left, instance=self._instance).replace("is not ready", "has not ended"),
                sandbox=placed.sandbox,
            )
        return found[0]

    async def _again(self, sandbox: SandboxId, wanted: PlacedSpec, *, deadline: float) -> Placed:
        """Write into the resource that is there."""
        found = await self._objects.get(self._objects.namespace(wanted.client), sandbox)
        while found is not None and found.leaving:
            # An earlier removal is on its way: its claims stay, and are found by their names.
            await self._removal.until_gone(found, deadline=deadline)
            found = await self._objects.get(found.namespace, sandbox)
        if found is None:
            return await self._objects.create(sandbox, wanted)
        if found.spec.incarnation == wanted.incarnation:
            if found.alive(wanted.incarnation) and not await self._is_lost(found):
                return found
            if found.spec.mode is Mode.STOPPED or _over(found) or found.status.pod_uid:
                # The life of this name is over, and a pod has it only once: away with what is left, then a fresh one.
                found = await self._objects.set_mode(found, Mode.STOPPED)
                stopped = await self.until_stopped(found, deadline=deadline)
                if stopped is None:
                    return await self._objects.create(sandbox, wanted)
                found = stopped
        changes = {
            name: value
            for name, value in wanted.as_mapping().items()
            if name not in ("client", "freelancer", "kept", "pool", "recipe")
        }
        return await self._objects.change(found, changes)

    async def _is_lost(self, placed: Placed) -> bool:
        if not placed.status.pod_uid:
            return False
        return bool(lost_pod(placed, await self._objects.pod(placed)))

    async def _until_answering(
        self, placed: Placed, watch: WatchOfStart, *, deadline: float
    ) -> tuple[AgentEndpoint, StartReport]:
        incarnation = placed.spec.incarnation
        endpoint = await self._until_addressed(placed, watch, deadline=deadline)
        left = self._left(deadline)
        failing = asyncio.create_task(self._until_failed(placed, watch, deadline=deadline), name=f"fail-{incarnation}")
        pulls = asyncio.create_task(self._read_pulls(placed, watch), name=f"pulls-{incarnation}")
        reaching = asyncio.create_task(reach(self._connector, endpoint), name=f"reach-{incarnation}")
        try:
            await self._until_either(placed, {failing, reaching}, left=left)
            if reaching.done():
                reaching.result()
                answered = self._clock.monotonic()
                await asyncio.wait({pulls}, timeout=EVENTS_TIMEOUT.total_seconds())
                return endpoint, watch.report(answered=answered)
            if failing.done():
                raise failing.result()
            last = self._mirror.get(placed.sandbox) or placed
            raise DeadlineError(
                f"The agent of sandbox {placed.sandbox} at {endpoint.host}:{endpoint.port} does not answer after "
                f"{left:.0f} s (the sandbox is {last.status.state.value}). Look at its log (kubectl logs -n "
                f"{placed.namespace} {placed.sandbox}-0), and whether this service may reach addresses of pods.",
                sandbox=placed.sandbox,
                incarnation=incarnation,
            )
        finally:
            for task in (failing, pulls, reaching):
                task.cancel()
            await asyncio.gather(failing, pulls, reaching, return_exceptions=True)

    async def _until_either(self, placed: Placed, tasks: set[asyncio.Task[Any]], *, left: float) -> None:
        """Wait for the first of them; of an image of its own no longer than an agent takes to listen.

        Raises:
            ImageBrokenError: It does not even for the kubelet, which is beside it.
        """
        limit = min(left, self.listen_patience.total_seconds()) if placed.spec.image else left
        done, _ = await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if done or not placed.spec.image:
            return
        seen = self._mirror.get(placed.sandbox)
        started = None if seen is None else seen.status.find(ConditionType.AGENT_STARTED)
        if seen is not None and started is not None and started.status is True and not listens(seen):
            text = f"It does not listen {limit:.0f} s after its start."
            raise image_broken(placed.sandbox, placed.spec.image, BootStep.AGENT, text)
        await asyncio.wait(tasks, timeout=left - limit, return_when=asyncio.FIRST_COMPLETED)

    async def _until_addressed(self, placed: Placed, watch: WatchOfStart, *, deadline: float) -> AgentEndpoint:
        """Wait for the pod's address; gives up earlier where waiting does not help."""
        incarnation = placed.spec.incarnation

        def look(seen: Placed) -> AgentEndpoint | SandboxdError | None:
            watch.see(seen, at=self._clock.monotonic())
            if (over := _superseded(seen, incarnation)) is not None:
                return over
            if seen.alive(incarnation) and seen.endpoint is not None:
                return seen.endpoint
            if seen.status.state is PlacedState.FAILED and seen.status.incarnation == incarnation:
                return refusal(seen)
            return None

        match await self._wait(placed, look, deadline=deadline):
            case AgentEndpoint() as endpoint:
                return endpoint
            case SandboxdError() as error:
                raise error
            case _:
                last = self._mirror.get(placed.sandbox) or placed
                seconds = deadline - watch.began
                raise DeadlineError(
                    lateness(last, seconds=seconds, instance=self._instance),
                    sandbox=placed.sandbox,
                    incarnation=incarnation,
                )

    async def _until_failed(self, placed: Placed, watch: WatchOfStart, *, deadline: float) -> SandboxdError:
        """Go on watching while the agent is tried: its container may end, or somebody else may take the sandbox."""
        incarnation = placed.spec.incarnation

        def look(seen: Placed) -> SandboxdError | None:
            watch.see(seen, at=self._clock.monotonic())
            if (over := _superseded(seen, incarnation)) is not None:
                return over
            failed = seen.status.incarnation == incarnation and (_over(seen) or seen.status.restarts > 0)
            return refusal(seen) if failed else None

        found = await self._wait(placed, look, deadline=deadline + 1.0)
        if isinstance(found, SandboxdError):
            return found
        return DeadlineError(lateness(placed, seconds=0.0, instance=self._instance), sandbox=placed.sandbox)

    async def _wait(
        self, placed: Placed, look: Callable[[Placed], _Answer | None], *, deadline: float
    ) -> _Answer | None:
        """Look at each change of what was written until that answers; give up earlier where waiting does not help.

        None when the time is over.
        """
        trouble: Reason | None = None
        until = deadline

        def seeing(seen: Placed | None) -> _Answer | Reason | None:
            if seen is None or seen.uid != placed.uid or not _about(seen, placed):
                return None
            if (answer := look(seen)) is not None:
                return answer
            reason = seen.status.reason
            return reason if reason is not trouble and patience_of(seen) is not None else None

        while True:
            left = max(0.0, until - self._clock.monotonic())
            found: _Answer | Reason | None = await self._mirror.wait(placed.sandbox, seeing, seconds=left)
            last = self._mirror.get(placed.sandbox) or placed
            if isinstance(found, Reason):
                patience = patience_of(last) or timedelta(0)
                trouble, until = found, min(deadline, self._clock.monotonic() + patience.total_seconds())
            elif found is not None:
                return found
            elif last.taken_up and patience_of(last) is not None:
                return refusal(last)
            elif self._clock.monotonic() < deadline:
                trouble, until = None, deadline  # it has passed
            else:
                return None

    async def _read_pulls(self, placed: Placed, watch: WatchOfStart) -> None:
        seen = self._mirror.get(placed.sandbox)
        if seen is None:
            return
        try:
            watch.read(await self._objects.pull_messages(seen, timeout=EVENTS_TIMEOUT))
        except KubeError as error:
            log.info("cluster.events_unread", sandbox=placed.sandbox, error=error.message)

    def _left(self, deadline: float) -> float:
        return max(0.0, deadline - self._clock.monotonic())


def _about(seen: Placed, placed: Placed) -> bool:
    """Tell whether the status is about what we wrote, or something later."""
    return seen.generation >= placed.generation and seen.status.observed_generation >= placed.generation


def _over(placed: Placed) -> bool:
    return placed.status.state is PlacedState.FAILED


def _superseded(seen: Placed, incarnation: IncarnationId) -> SandboxdError | None:
    if seen.spec.incarnation == incarnation and seen.spec.mode is not Mode.STOPPED:
        return None
    return SupersededError(
        f"Somebody else has stopped or restarted sandbox {seen.sandbox} while it was started. Try again.",
        sandbox=seen.sandbox,
    )
