"""One pass over a `SandboxProbe`: its pod made, its status written, and both taken away when their time is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from sandboxd.kubeapi.errors import KubeNotFoundError
from sandboxd.model.sources import Clock
from sandboxd.operator.kinds import Kind
from sandboxd.operator.mirrors import Mirrors, WorkKey
from sandboxd.operator.observed import Refusal, is_ours
from sandboxd.operator.plan import PlanSettings
from sandboxd.operator.probing import ProbeWorld, conclude_probe, plan_probe, until
from sandboxd.operator.template import Template
from sandboxd.operator.tenancy import namespace_objects
from sandboxd.operator.writing import Writer

log = structlog.get_logger(__name__)


class Prober:
    """Level-triggered, like the reconciler of sandboxes."""

    def __init__(
        self,
        *,
        mirrors: Mirrors,
        writer: Writer,
        settings: PlanSettings,
        clock: Clock,
        later: Callable[[WorkKey, float], None],
    ) -> None:
        self._mirrors = mirrors
        self._writer = writer
        self._settings = settings
        self._clock = clock
        self._later = later

    async def reconcile(self, key: WorkKey) -> Sequence[Refusal]:
        """Converge one probe; answers what was refused, to be tried again later.

        Raises:
            KubeError: The API server did not answer, or something was changed meanwhile.
            NotLeaderError: Another operator leads.
        """
        try:
            world = self._look(key)
            steps = () if world is None else plan_probe(world, self._settings, now=self._clock.now())
        except (KeyError, ValueError) as error:
            log.warning("operator.probe_unreadable", probe=key.probe, error=repr(error))
            return ()
        refusals = await self._writer.carry_out([steps] if steps else [])
        world = self._look(key, refusals=refusals)
        if world is None or "deletionTimestamp" in world.resource["metadata"]:
            return refusals
        self._later(key, until(world.ends, now=self._clock.now()))
        status = conclude_probe(world, self._settings).as_mapping()
        if status == world.resource.get("status"):
            return refusals
        version = world.resource["metadata"]["resourceVersion"]
        with suppress(KubeNotFoundError):  # whoever asked has its answer, or waits no more
            await self._writer.patch_status(Kind.PROBE, key.namespace, key.probe, status, version)
        return refusals

    def _look(self, key: WorkKey, *, refusals: Sequence[Refusal] = ()) -> ProbeWorld | None:
        resource = self._mirrors.get(Kind.PROBE, key.namespace, key.probe)
        if resource is None or not is_ours(resource, instance=self._settings.instance):
            return None
        sandbox = self._mirrors.get(Kind.SANDBOX, key.namespace, str(resource["spec"]["sandbox"]))
        name = "" if sandbox is None else str(sandbox["spec"].get("template", ""))
        template = self._mirrors.get(Kind.TEMPLATE, "", name)
        return ProbeWorld(
            resource=resource,
            sandbox=sandbox if is_ours(sandbox, instance=self._settings.instance) else None,
            template=None if template is None else Template.from_mapping(template["spec"]),
            pod=self._mirrors.get(Kind.POD, key.namespace, key.probe),
            namespace_ready=self._is_ready(key.namespace),
            refusals=refusals,
        )

    def _is_ready(self, name: str) -> bool:
        """Whether the namespace is furnished: then its own key has been worked on, and wakes its probes."""
        namespace = self._mirrors.get(Kind.NAMESPACE, "", name)
        if namespace is None:
            return False
        built = namespace_objects(namespace, instance=self._settings.instance, network=self._settings.network)
        return all(
            self._mirrors.get(kind, name, one["metadata"]["name"]) is not None
            for kind, objects in built.items()
            for one in objects
        )
