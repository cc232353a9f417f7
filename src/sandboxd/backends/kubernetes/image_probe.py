"""Boots an image once in a pod of its own, by a `SandboxProbe`: this service makes no pods.

Whatever happens to this service, the probe ends: its pod has a deadline, and the operator removes it when its time is
over. Of what it says nothing is believed but its verdict; its words are bounded, and without control characters.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Final

import structlog
from typing_extensions import override

from sandboxd.backends.kubernetes.image_trouble import OWN_PATIENCE, image_broken, never_mind
from sandboxd.backends.kubernetes.mirror import Mirror
from sandboxd.backends.kubernetes.objects import SandboxObjects
from sandboxd.backends.kubernetes.placed import Placed
from sandboxd.backends.kubernetes.refusals import LOOK, PATIENCE, RETRY_SOON, PlacementError, translated
from sandboxd.backends.kubernetes.work_watch import WorkWatch
from sandboxd.images.ports import ImageProbe, ImageReference
from sandboxd.kubeapi.client import segment
from sandboxd.kubeapi.errors import KubeError, KubeNotFoundError
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.kubeapi.reflector import Reflector
from sandboxd.model.cluster import API_VERSION, PROBES, SERVE_MANAGER
from sandboxd.model.cluster_probe import PROBE_PREFIX, PlacedProbe, ProbeState, ProbeStatus, probe_resource
from sandboxd.model.cluster_status import Reason
from sandboxd.model.errors import DeadlineError, SandboxdError, UnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.model.sources import Clock

REMOVAL_TIMEOUT: Final = timedelta(seconds=5)
"""For taking a probe away; what fails is the operator's."""
SHORTEST: Final = timedelta(seconds=5)
"""A pod that has less than this need not be made."""
MESSAGE_CHARACTERS: Final = 600

log = structlog.get_logger(__name__)


class KubernetesProbe(ImageProbe):
    """Probes images in the namespaces of their clients."""

    def __init__(
        self,
        api: KubeApi,
        *,
        objects: SandboxObjects,
        mirror: Mirror,
        instance: str,
        clock: Clock,
        name: Callable[[], str],
    ) -> None:
        """Take what it works with.

        Args:
            api: Reaches the cluster.
            objects: Finds sandboxes.
            mirror: Knows where they are.
            instance: Ours in the cluster.
            clock: The time.
            name: A fresh word for each probe, at most 50 characters of a label's.
        """
        self._api = api
        self._objects = objects
        self._mirror = mirror
        self._instance = instance
        self._clock = clock
        self._name = name

    @override
    async def probe(self, sandbox: SandboxId, image: ImageReference, *, timeout: timedelta) -> None:
        if timeout < SHORTEST:
            raise DeadlineError(f"There is no time left to probe image {image}.", sandbox=sandbox, image=str(image))
        watch = WorkWatch(ProbeStatus(), read=ProbeStatus.from_mapping, patience=_patience)
        try:
            async with asyncio.timeout(timeout.total_seconds()), self._placed(sandbox, image, timeout) as path:
                await self._follow(path, watch, sandbox, image)
        except KubeError as error:
            raise translated(error, f"Image {image} cannot be probed", sandbox=sandbox) from error
        except TimeoutError as error:
            raise DeadlineError(
                f"The probe of image {image} did not end within {timeout.total_seconds():.0f} s: it is "
                f"{watch.status.state.value} ({watch.status.reason or 'the operator has not taken it up'}). "
                f"{watch.status.message}".rstrip(),
                sandbox=sandbox,
                image=str(image),
            ) from error

    @asynccontextmanager
    async def _placed(self, sandbox: SandboxId, image: ImageReference, timeout: timedelta) -> AsyncIterator[str]:
        """Make the probe, and take it away again."""
        placed = await self._find(sandbox)
        probe = PlacedProbe(sandbox=sandbox, image=str(image), deadline=timeout)
        name = f"{PROBE_PREFIX}{self._name()}"
        body = probe_resource(name, probe, namespace=placed.namespace, instance=self._instance, owner_uid=placed.uid)
        collection = f"/apis/{API_VERSION}/namespaces/{segment(placed.namespace)}/{PROBES}"
        path = f"{collection}/{segment(name)}"
        try:
            await self._api.create(collection, body, field_manager=SERVE_MANAGER)
            yield path
        finally:
            await self._remove(path)

    async def _find(self, sandbox: SandboxId) -> Placed:
        known = self._mirror.get(sandbox)
        found = None if known is None else await self._objects.get(known.namespace, sandbox)
        found = found or await self._objects.search(sandbox)
        if found is None or found.leaving:
            raise UnavailableError(f"Sandbox {sandbox} is not in the cluster.", sandbox=sandbox)
        return found

    async def _remove(self, path: str) -> None:
        """Also when this was cancelled; whoever is killed leaves it to the operator."""
        removing = asyncio.ensure_future(self._delete(path))
        try:
            await asyncio.shield(removing)
        except asyncio.CancelledError:
            with suppress(asyncio.CancelledError):
                await asyncio.wait({removing}, timeout=REMOVAL_TIMEOUT.total_seconds())
            raise

    async def _delete(self, path: str) -> None:
        try:
            await self._api.delete(path, propagation="Background", timeout=REMOVAL_TIMEOUT)
        except KubeNotFoundError:
            return
        except KubeError as error:
            log.warning("cluster.probe_left", path=path, error=error.message)

    async def _follow(
        self, path: str, watch: WorkWatch[ProbeStatus], sandbox: SandboxId, image: ImageReference
    ) -> None:
        """Follow a probe to its end, or as long as waiting helps.

        Raises:
            ImageBrokenError: It does not boot.
            UnavailableError: Nothing can be said of it now.
        """
        collection, _, name = path.rpartition("/")
        reflector = Reflector(self._api, collection, field_selector=f"metadata.name={name}")
        reflector.listen(watch.take)
        following = asyncio.create_task(reflector.run(), name=f"follow-{name}")
        try:
            while True:
                changed = watch.changed
                error = self._verdict(watch, sandbox, image)
                if error is not None:
                    raise error
                if watch.status.state is ProbeState.BOOTED:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(watch.left(self._clock.monotonic())):
                        await changed.wait()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    def _verdict(
        self, watch: WorkWatch[ProbeStatus], sandbox: SandboxId, image: ImageReference
    ) -> SandboxdError | None:
        status = watch.status
        if watch.gone:
            return self._unavailable(sandbox, image, status, "its probe was removed")
        match status.state:
            case ProbeState.BROKEN if status.step is not None:
                return image_broken(sandbox, str(image), status.step, status.message)
            case ProbeState.BROKEN | ProbeState.UNDECIDED:
                return self._unavailable(sandbox, image, status, "its probe came to no end")
            case ProbeState.WAITING if watch.over(self._clock.monotonic()):
                if status.step is not None:
                    return image_broken(sandbox, str(image), status.step, status.message)
                return self._unavailable(sandbox, image, status, "its probe does not start")
            case _:
                return None

    def _unavailable(self, sandbox: SandboxId, image: ImageReference, status: ProbeStatus, what: str) -> SandboxdError:
        reason = _reason_of(status)
        placed = self._mirror.get(sandbox)
        names = {
            "namespace": placed.namespace if placed is not None else "",
            "template": placed.spec.template if placed is not None else "",
            "sandbox": sandbox,
        }
        look = LOOK.get(reason, "").format(**names) if reason is not None else ""
        parts = (f"Nothing can be said of image {image}: {what}", look, status.message)
        text = ". ".join(part.rstrip(".") for part in parts if part) + "."
        return PlacementError(text, retry_after=RETRY_SOON, sandbox=sandbox, image=str(image), cause=status.reason)


def _patience(status: ProbeStatus) -> timedelta | None:
    reason = _reason_of(status)
    if status.state is not ProbeState.WAITING or reason is None:
        return None
    if status.step is not None:
        return None if never_mind(status.message) else OWN_PATIENCE.get(reason)
    return PATIENCE.get(reason)


def _reason_of(status: ProbeStatus) -> Reason | None:
    try:
        return Reason(status.reason)
    except ValueError:
        return None
