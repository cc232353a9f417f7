"""One pass over a `SandboxProbe`: its pod made, its status written, and both taken away when their time is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from sandboxd.model.sources import Clock
from sandboxd.operator.asked_work import AskedWork, until
from sandboxd.operator.kinds import Kind
from sandboxd.operator.mirrors import Mirrors, WorkKey
from sandboxd.operator.observed import Refusal
from sandboxd.operator.plan import PlanSettings
from sandboxd.operator.probing import ProbeWorld, conclude_probe, plan_probe
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
        self._asked = AskedWork(mirrors=mirrors, writer=writer, settings=settings)
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
        await self._asked.conclude(Kind.PROBE, world.resource, status)
        return refusals

    def _look(self, key: WorkKey, *, refusals: Sequence[Refusal] = ()) -> ProbeWorld | None:
        resource = self._asked.ours(Kind.PROBE, key.namespace, key.probe)
        if resource is None:
            return None
        sandbox = self._asked.ours(Kind.SANDBOX, key.namespace, str(resource["spec"]["sandbox"]))
        name = "" if sandbox is None else str(sandbox["spec"].get("template", ""))
        return ProbeWorld(
            resource=resource,
            sandbox=sandbox,
            template=self._asked.template(name),
            pod=self._mirrors.get(Kind.POD, key.namespace, key.probe),
            namespace_ready=self._asked.is_furnished(key.namespace),
            refusals=refusals,
        )
