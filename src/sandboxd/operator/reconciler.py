"""One pass over a sandbox, or over a client's namespace: look, plan, do, and write down what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog

from sandboxd.kubeapi.errors import KubeNotFoundError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.model.cluster import POD_SECURITY_LABELS, Mode, agent_secret_of, claims_of
from sandboxd.model.cluster_status import PlacedState, PlacedStatus, Reason
from sandboxd.model.ids import time_of_id
from sandboxd.model.sources import Clock
from sandboxd.operator.announcing import PATIENCE_SECONDS, Announcement, announcements, lasting
from sandboxd.operator.builders import api_time, resource_event
from sandboxd.operator.comparing import merging, says
from sandboxd.operator.concluding import conclude
from sandboxd.operator.holding import HOLD_SECONDS, may_wait
from sandboxd.operator.kinds import Kind
from sandboxd.operator.losses import is_bound
from sandboxd.operator.mirrors import Mirrors, WorkKey, pod_name
from sandboxd.operator.observed import Desired, Observed, Refusal, incarnation_of, is_ours, is_terminating
from sandboxd.operator.plan import Create, Patch, PlanSettings, Step, plan
from sandboxd.operator.tenancy import namespace_objects
from sandboxd.operator.writing import Writer

log = structlog.get_logger(__name__)

_NAMESPACE_KINDS: Final = (Kind.POLICY, Kind.QUOTA, Kind.LIMITS)


class Reconciler:
    """Level-triggered: what woke it does not matter."""

    def __init__(
        self,
        api: KubeApi,
        *,
        mirrors: Mirrors,
        writer: Writer,
        settings: PlanSettings,
        clock: Clock,
        reporter: str,
        later: Callable[[WorkKey, float], None],
    ) -> None:
        self._api = api
        self._mirrors = mirrors
        self._writer = writer
        self._settings = settings
        self._clock = clock
        self._reporter = reporter
        self._later = later
        self._waiting: dict[WorkKey, tuple[str, float, bool]] = {}
        self._held: dict[WorkKey, float] = {}
        """Since when there is something to write that may wait."""

    async def reconcile(self, key: WorkKey) -> Sequence[Refusal]:
        """Converge what a key names; answers what was refused, to be tried again later.

        Raises:
            KubeError: The API server did not answer, or something was changed meanwhile.
            NotLeaderError: Another operator leads.
        """
        if not key.sandbox:
            return await self._namespace(key.namespace)
        resource = self._mirrors.get(Kind.SANDBOX, key.namespace, key.sandbox)
        if resource is None or not is_ours(resource, instance=self._settings.instance):
            self._waiting.pop(key, None)
            self._held.pop(key, None)
            return ()
        try:
            desired = Desired.from_resource(resource)
        except (KeyError, ValueError) as error:
            log.warning("operator.resource_unreadable", sandbox=key.sandbox, error=repr(error))
            return ()
        observed = await self._look(desired)
        waves = plan(desired, observed, self._settings)
        refusals = await self._writer.carry_out(waves, desired)
        if not refusals and any(isinstance(step, Patch) and step.why == "drift" for wave in waves for step in wave):
            text = "The StatefulSet had been changed by somebody else and is as it was."
            await self._post(desired, Announcement(reason=Reason.DRIFT_REPAIRED.value, message=text, warning=True))
        await self._conclude(desired, refusals)
        return refusals

    def states(self) -> Mapping[PlacedState, int]:
        """How many sandboxes are in which state."""
        return Counter(
            PlacedState(one.get("status", {}).get("state", PlacedState.PENDING.value))
            for one in self._mirrors.all(Kind.SANDBOX)
        )

    async def _conclude(self, planned: Desired, refusals: Sequence[Refusal]) -> None:
        resource = self._mirrors.get(Kind.SANDBOX, planned.namespace, planned.sandbox)
        if resource is None or not resource["metadata"].get("finalizers"):
            return
        desired = Desired.from_resource(resource)
        key = WorkKey(namespace=desired.namespace, sandbox=desired.sandbox)
        observed = replace(await self._look(desired), refusals=[*refusals, *self._failures(desired)])
        status = conclude(desired, observed, self._settings, now=self._now())
        await self._tell_lasting(desired, status)
        if status.as_mapping() == resource.get("status"):
            self._held.pop(key, None)
            return
        if self._holds(key, desired.status, status):
            return
        await self._writer.patch_status(
            Kind.SANDBOX, desired.namespace, desired.sandbox, status.as_mapping(), desired.resource_version
        )
        self._held.pop(key, None)
        await self._announce(desired, status)

    def _holds(self, key: WorkKey, before: PlacedStatus, after: PlacedStatus) -> bool:
        """Keep a change back that may wait, for as long as it may."""
        if not may_wait(before, after):
            return False
        now = self._clock.monotonic()
        left = self._held.setdefault(key, now) + HOLD_SECONDS - now
        if left <= 0:
            return False
        self._later(key, left)
        return True

    async def _announce(self, desired: Desired, status: PlacedStatus) -> None:
        for one in announcements(desired.status, status):
            await self._post(desired, one)

    async def _tell_lasting(self, desired: Desired, status: PlacedStatus) -> None:
        """Tell once of what every start may have for a moment, and this one has for longer."""
        key = WorkKey(namespace=desired.namespace, sandbox=desired.sandbox)
        found, now = lasting(status), self._clock.monotonic()
        if found is None:
            self._waiting.pop(key, None)
            return
        reason, since, told = self._waiting.get(key, ("", now, False))
        if reason != found.reason:
            since, told = now, False
        if not told and now - since >= PATIENCE_SECONDS:
            await self._post(desired, found)
            told = True
        elif not told:
            self._later(key, PATIENCE_SECONDS - (now - since) + 0.1)
        self._waiting[key] = (found.reason, since, told)

    async def _post(self, desired: Desired, one: Announcement) -> None:
        await self._writer.post_event(
            resource_event(
                desired.sandbox,
                namespace=desired.namespace,
                uid=desired.uid,
                reason=one.reason,
                message=one.message,
                warning=one.warning,
                time=self._now(),
                reporter=self._reporter,
            )
        )

    async def _look(self, desired: Desired) -> Observed:
        namespace, sandbox = desired.namespace, desired.sandbox
        template = self._mirrors.get(Kind.TEMPLATE, "", desired.spec.template)
        names = claims_of(sandbox)
        found = {volume: self._mirrors.get(Kind.CLAIM, namespace, name) for volume, name in names.items()}
        claims = {volume: claim for volume, claim in found.items() if claim is not None}
        pod = await self._pod(desired)
        node = desired.status.node if pod is None else pod["spec"].get("nodeName", "")
        return Observed(
            template=None if template is None else self._settings.read_template(template["spec"]),
            namespace=await self._own_namespace(namespace),
            namespace_objects={kind: self._objects(kind, namespace) for kind in _NAMESPACE_KINDS},
            stateful_set=self._mirrors.get(Kind.STATEFUL_SET, namespace, sandbox),
            secret=self._mirrors.get(Kind.SECRET, namespace, agent_secret_of(sandbox)),
            pod=pod,
            claims=claims,
            node_ready=desired.spec.mode is Mode.STOPPED or self._mirrors.node_ready(node),
            expandable=bool(claims) and all(self._is_expandable(claim) for claim in claims.values()),
        )

    async def _pod(self, desired: Desired) -> Json | None:
        """The pod. A bound one that the mirror does not have is looked for at its source before it counts as lost."""
        name = pod_name(desired.sandbox)
        pod = self._mirrors.get(Kind.POD, desired.namespace, name)
        bound = is_bound(desired) and desired.spec.mode is not Mode.STOPPED and not desired.deleting
        if not bound or desired.status.state is PlacedState.FAILED:
            return pod
        if pod is not None and pod["metadata"]["uid"] == desired.status.pod_uid:
            return pod
        return await self._read(Kind.POD, desired.namespace, name)

    async def _own_namespace(self, name: str) -> Json | None:
        """The namespace; its mirror may be a moment behind that of the sandboxes in it."""
        found = self._mirrors.get(Kind.NAMESPACE, "", name)
        if found is not None:
            return found
        live = await self._read(Kind.NAMESPACE, "", name)
        if live is not None and is_ours(live, instance=self._settings.instance):
            self._mirrors.remember(Kind.NAMESPACE, live)
        return live

    async def _read(self, kind: Kind, namespace: str, name: str) -> Json | None:
        try:
            return await self._api.get(kind.path(namespace, name))
        except KubeNotFoundError:
            return None

    def _objects(self, kind: Kind, namespace: str) -> dict[str, Json]:
        names = {Kind.POLICY: ("sandboxd-deny", "sandboxd-allow")}.get(kind, ("sandboxd",))
        found = {name: self._mirrors.get(kind, namespace, name) for name in names}
        return {name: obj for name, obj in found.items() if obj is not None}

    def _is_expandable(self, claim: Json) -> bool:
        name = claim["spec"].get("storageClassName", "")
        found = self._mirrors.get(Kind.STORAGE_CLASS, "", name)
        return found is not None and bool(found.get("allowVolumeExpansion"))

    def _failures(self, desired: Desired) -> Iterator[Refusal]:
        """What the StatefulSet's controller was refused since this incarnation was wanted."""
        event = self._mirrors.failure(desired.namespace, desired.sandbox)
        found = self._mirrors.get(Kind.STATEFUL_SET, desired.namespace, desired.sandbox)
        if event is None or found is None or incarnation_of(found["spec"]["template"]) != desired.spec.incarnation:
            return
        last = event.get("lastTimestamp") or event.get("eventTime") or ""
        since = f"{time_of_id(desired.spec.incarnation):%Y-%m-%dT%H:%M:%S}"
        if event["involvedObject"].get("uid") == found["metadata"]["uid"] and last >= since:
            yield Refusal(kind=Kind.POD, status=403, message=str(event.get("message", "")), reason="FailedCreate")

    async def _namespace(self, name: str) -> Sequence[Refusal]:
        """Repair what a client's namespace must hold."""
        namespace = self._mirrors.get(Kind.NAMESPACE, "", name)
        if namespace is None or is_terminating(namespace):
            return ()
        steps: list[Step] = []
        if not says(namespace["metadata"].get("labels", {}), POD_SECURITY_LABELS):
            steps.append(_patch(Kind.NAMESPACE, namespace, {"metadata": {"labels": dict(POD_SECURITY_LABELS)}}))
        built = namespace_objects(namespace, instance=self._settings.instance, network=self._settings.network)
        for kind, objects in built.items():
            for body in objects:
                found = self._mirrors.get(kind, name, body["metadata"]["name"])
                if found is None:
                    steps.append(Create(kind=kind, namespace=name, name=body["metadata"]["name"], body=body))
                elif not says(found["spec"], body["spec"]):
                    steps.append(_patch(kind, found, {"spec": merging(found["spec"], body["spec"])}))
        return await self._writer.carry_out([steps] if steps else [])

    def _now(self) -> str:
        return api_time(self._clock.now())


def _patch(kind: Kind, obj: Json, body: Json) -> Patch:
    metadata = obj["metadata"]
    return Patch(
        kind=kind,
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        body=body,
        resource_version=metadata["resourceVersion"],
        why="drift",
    )
