"""One pass over a `SandboxTemplate`: its images on every node that fits, and the status that says so."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from sandboxd.kubeapi.errors import KubeNotFoundError
from sandboxd.model.sources import Clock
from sandboxd.operator.builders import api_time
from sandboxd.operator.kinds import Kind
from sandboxd.operator.mirrors import Mirrors
from sandboxd.operator.observed import Refusal
from sandboxd.operator.plan import PlanSettings
from sandboxd.operator.prepull import ImagesWorld, images_name, images_status, plan_images, template_of
from sandboxd.operator.writing import Writer


class Prepuller:
    """Level-triggered, like the reconciler of sandboxes."""

    def __init__(self, *, mirrors: Mirrors, writer: Writer, settings: PlanSettings, clock: Clock) -> None:
        self._mirrors = mirrors
        self._writer = writer
        self._settings = settings
        self._clock = clock

    async def reconcile(self, name: str) -> Sequence[Refusal]:
        """Converge one template; answers what was refused, to be tried again later.

        Raises:
            KubeError: The API server did not answer, or something was changed meanwhile.
            NotLeaderError: Another operator leads.
        """
        steps = plan_images(self._look(name), self._settings)
        refusals = await self._writer.carry_out([steps] if steps else [])
        world = self._look(name, refusal=refusals[0].message if refusals else "")
        status = images_status(world, self._settings, now=api_time(self._clock.now()))
        if status is not None and world.resource is not None:
            version = world.resource["metadata"]["resourceVersion"]
            with suppress(KubeNotFoundError):  # it went meanwhile, or the definitions are older than this operator
                await self._writer.patch_status(Kind.TEMPLATE, "", name, status, version)
        return refusals

    def _look(self, name: str, *, refusal: str = "") -> ImagesWorld:
        namespace = self._settings.network.own_namespace
        pods = [
            pod
            for pod in self._mirrors.all(Kind.POD)
            if pod["metadata"]["namespace"] == namespace and template_of(pod) == name
        ]
        return ImagesWorld(
            name=name,
            resource=self._mirrors.get(Kind.TEMPLATE, "", name),
            daemon_set=self._mirrors.get(Kind.DAEMON_SET, namespace, images_name(name)),
            pods=pods,
            refusal=refusal,
        )
