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
from sandboxd.backends.kubernetes.pulling import LOOK_EVERY, PULL_TIMEOUT, PullPatience
from sandboxd.backends.kubernetes.reaching import reach
from sandboxd.backends.kubernetes.refusals import SupersededError, lateness, patience_of, refusal
from sandboxd.backends.kubernetes.removal import Removal
from sandboxd.backends.kubernetes.watch_of_start import WatchOfStart
from sandboxd.kubeapi.errors import KubeConflictError, KubeError
from sandboxd.manager.backend_port import Told, untold
from sandboxd.model.boot_step import BootStep
from sandboxd.model.cluster import Mode, PlacedSpec
from sandboxd.model.cluster_status import PlacedState, Reason
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
        self.look_for_pulls_every = LOOK_EVERY
        self.pull_timeout = PULL_TIMEOUT

    async def start(
        self, sandbox: SandboxId, wanted: PlacedSpec, *, deadline: float, pulling: Told = untold
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
        patience = PullPatience(
            objects=self._objects,
            mirror=self._mirror,
            clock=self._clock,
            deadline=deadline,
            told=pulling,
            look_every=self.look_for_pulls_every,
            timeout=self.pull_timeout,
        )
        following = asyncio.create_task(patience.follow(placed), name=f"pulling-{wanted.incarnation}")
        try:
            return await self._until_answering(placed, watch, patience)
        except ImageBrokenError:
            # Nothing replaces a pod that never started: it goes, so that a start from another image finds its place.
            await self._let_go(placed)
            raise
        finally:
            following.cancel()
            (ended,) = await asyncio.gather(following, return_exceptions=True)
            if isinstance(ended, Exception):
                log.warning("cluster.pulls_not_followed", sandbox=sandbox, error=repr(ended))

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
        self, placed: Placed, watch: WatchOfStart, patience: PullPatience
    ) -> tuple[AgentEndpoint, StartReport]:
        incarnation = placed.spec.incarnation
        endpoint = await self._until_addressed(placed, watch, patience)
        addressed = self._clock.monotonic()
        failing = asyncio.create_task(self._until_failed(placed, watch, patience), name=f"fail-{incarnation}")
        reaching = asyncio.create_task(reach(self._connector, endpoint), name=f"reach-{incarnation}")
        try:
            await self._until_either(placed, {failing, reaching}, watch, patience)
            if reaching.done():
                reaching.result()
                answered = self._clock.monotonic()
                await self._read_pulls(placed, watch)
                return endpoint, watch.report(answered=answered)
            if failing.done():
                raise failing.result()
            raise self._unanswered(placed, endpoint, patience, seconds=self._clock.monotonic() - addressed)
        finally:
            for task in (failing, reaching):
                task.cancel()
            await asyncio.gather(failing, reaching, return_exceptions=True)

    def _unanswered(
        self, placed: Placed, endpoint: AgentEndpoint, patience: PullPatience, *, seconds: float
    ) -> DeadlineError:
        last = self._mirror.get(placed.sandbox) or placed
        text = (
            f"The agent of sandbox {placed.sandbox} at {endpoint.host}:{endpoint.port} does not answer after "
            f"{seconds:.0f} s (the sandbox is {last.status.state.value}). Look at its log (kubectl logs -n "
            f"{placed.namespace} {placed.sandbox}-0), and whether this service may reach addresses of pods."
        )
        if patience.pulling:
            text = (
                f"The node of sandbox {placed.sandbox} is still pulling its image after {seconds:.0f} s. Look at the "
                f"image's size, at the node's disk, and at its way to the registry (kubectl describe pod -n "
                f"{placed.namespace} {placed.sandbox}-0)."
            )
        return DeadlineError(text, sandbox=placed.sandbox, incarnation=placed.spec.incarnation)

    async def _until_either(
        self, placed: Placed, tasks: set[asyncio.Task[Any]], watch: WatchOfStart, patience: PullPatience
    ) -> None:
        """Wait for the first of them; of an image of its own no longer than an agent takes to listen.

        Raises:
            ImageBrokenError: It does not even for the kubelet, which is beside it.
        """
        listening = self.listen_patience.total_seconds()
        doubted = bool(placed.spec.image)
        while (left := patience.left) > 0:
            due = left
            if doubted:
                now = self._clock.monotonic()
                due = listening if watch.started is None else watch.started + listening - now
                if due <= 0:
                    self._refuse_the_deaf(placed, seconds=listening)
                    doubted, due = False, left
            done, _ = await asyncio.wait(tasks, timeout=min(left, due), return_when=asyncio.FIRST_COMPLETED)
            if done:
                return

    def _refuse_the_deaf(self, placed: Placed, *, seconds: float) -> None:
        seen = self._mirror.get(placed.sandbox)
        if seen is not None and not listens(seen):
            text = f"It does not listen {seconds:.0f} s after its start."
            raise image_broken(placed.sandbox, placed.spec.image, BootStep.AGENT, text)

    async def _until_addressed(self, placed: Placed, watch: WatchOfStart, patience: PullPatience) -> AgentEndpoint:
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

        match await self._wait(placed, look, patience):
            case AgentEndpoint() as endpoint:
                return endpoint
            case SandboxdError() as error:
                raise error
            case _:
                last = self._mirror.get(placed.sandbox) or placed
                seconds = patience.deadline - watch.began
                raise DeadlineError(
                    lateness(last, seconds=seconds, instance=self._instance),
                    sandbox=placed.sandbox,
                    incarnation=incarnation,
                )

    async def _until_failed(self, placed: Placed, watch: WatchOfStart, patience: PullPatience) -> SandboxdError:
        """Go on watching while the agent is tried: its container may end, or somebody else may take the sandbox."""
        incarnation = placed.spec.incarnation

        def look(seen: Placed) -> SandboxdError | None:
            watch.see(seen, at=self._clock.monotonic())
            if (over := _superseded(seen, incarnation)) is not None:
                return over
            failed = seen.status.incarnation == incarnation and (_over(seen) or seen.status.restarts > 0)
            return refusal(seen) if failed else None

        found = await self._wait(placed, look, patience, spare=1.0)
        if isinstance(found, SandboxdError):
            return found
        return DeadlineError(lateness(placed, seconds=0.0, instance=self._instance), sandbox=placed.sandbox)

    async def _wait(
        self, placed: Placed, look: Callable[[Placed], _Answer | None], patience: PullPatience, *, spare: float = 0.0
    ) -> _Answer | None:
        """Look at each change of what was written until that answers; give up earlier where waiting does not help.

        None when the time is over.
        """
        trouble: Reason | None = None
        until = patience.deadline + spare

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
                limit = patience_of(last) or timedelta(0)
                trouble, until = found, min(patience.deadline + spare, self._clock.monotonic() + limit.total_seconds())
            elif found is not None:
                return found
            elif last.taken_up and patience_of(last) is not None:
                return refusal(last)
            elif self._clock.monotonic() < patience.deadline + spare:
                trouble, until = None, patience.deadline + spare  # it has passed, or its node is at it
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
