"""Carries out the steps of a plan, as long as this operator leads; says what was refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog

from sandboxd.kubeapi.errors import (
    KubeConflictError,
    KubeError,
    KubeNotFoundError,
    KubeUnavailableError,
)
from sandboxd.kubeapi.ports import STRATEGIC_PATCH, Json, KubeApi
from sandboxd.model.cluster import CONTAINER, OPERATOR_MANAGER
from sandboxd.operator.builders import agent_secret
from sandboxd.operator.kinds import Kind
from sandboxd.operator.leader import Leadership
from sandboxd.operator.metrics import OperatorMetrics
from sandboxd.operator.mirrors import Mirrors
from sandboxd.operator.observed import Desired, Refusal, is_ours
from sandboxd.operator.plan import Create, Delete, Patch, Resize, Step, Wave, WriteIdentity
from sandboxd.operator.ports import AgentIdentities

TIMEOUT = timedelta(seconds=10)

log = structlog.get_logger(__name__)


class Writer:
    """The only one that writes to the cluster."""

    def __init__(
        self,
        api: KubeApi,
        *,
        mirrors: Mirrors,
        leadership: Leadership,
        identities: AgentIdentities,
        instance: str,
        metrics: OperatorMetrics,
    ) -> None:
        self._api = api
        self._mirrors = mirrors
        self._leadership = leadership
        self._identities = identities
        self._instance = instance
        self._metrics = metrics

    async def carry_out(self, waves: Sequence[Wave], desired: Desired | None = None) -> Sequence[Refusal]:
        """Do the steps, wave after wave; a wave with a refusal is the last.

        Not so the growth of a claim: a sandbox whose volume stays as it is goes on otherwise.

        Raises:
            KubeUnavailableError: The API server does not answer, or not now.
            KubeConflictError: Something was changed since the plan was made.
            NotLeaderError: Another operator leads.
        """
        tolerated: list[Refusal] = []
        for wave in waves:
            results = await asyncio.gather(*(self._attempt(step, desired) for step in wave), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            refusals = [result for result in results if isinstance(result, Refusal)]
            if any(not one.growth for one in refusals):
                return [*tolerated, *refusals]
            tolerated += refusals
        return tolerated

    async def patch_status(self, kind: Kind, namespace: str, name: str, status: Json, resource_version: str) -> None:
        """Write the status of a resource of ours, of this very version."""
        self._leadership.check()
        body = {"metadata": {"resourceVersion": resource_version}, "status": status}
        path = f"{kind.path(namespace, name)}/status"
        written = await self._api.patch(path, body, field_manager=OPERATOR_MANAGER, timeout=TIMEOUT)
        self._mirrors.remember(kind, written)

    async def post_event(self, event: Json) -> None:
        """Write an Event; one that cannot be written is let go."""
        try:
            self._leadership.check()
            await self._api.create(
                Kind.EVENT.within(event["metadata"]["namespace"]), event, field_manager=OPERATOR_MANAGER
            )
        except KubeError as error:
            log.info("operator.event_refused", reason=event["reason"], error=error.message)

    async def _attempt(self, step: Step, desired: Desired | None) -> Refusal | None:
        name = type(step).__name__.lower()
        try:
            self._leadership.check()
            refusal = await self._do(step, desired)
        except (KubeUnavailableError, KubeConflictError):
            self._metrics.stepped(name, outcome="failed")
            raise
        except KubeError as error:
            kind = (
                Kind.POD if isinstance(step, Resize) else Kind.SECRET if isinstance(step, WriteIdentity) else step.kind
            )
            refusal = Refusal(
                kind=kind,
                status=error.status,
                message=error.message,
                reason=error.reason,
                resize=isinstance(step, Resize),
                growth=kind is Kind.CLAIM and isinstance(step, Patch) and "spec" in step.body,
            )
        self._metrics.stepped(name, outcome="refused" if refusal else "done")
        return refusal

    async def _do(self, step: Step, desired: Desired | None) -> Refusal | None:
        match step:
            case Create():
                return await self._create(step)
            case Patch():
                metadata = {**step.body.get("metadata", {}), "resourceVersion": step.resource_version}
                written = await self._api.patch(
                    step.kind.path(step.namespace, step.name),
                    {**step.body, "metadata": metadata},
                    field_manager=OPERATOR_MANAGER,
                    timeout=TIMEOUT,
                )
                self._remember(step.kind, written)
                if step.why == "drift":
                    log.info(
                        "operator.drift_repaired", kind=step.kind.value[1], namespace=step.namespace, name=step.name
                    )
            case Resize():
                await self._api.patch(
                    f"{Kind.POD.path(step.namespace, step.pod)}/resize",
                    {"spec": {"containers": [{"name": CONTAINER, "resources": step.resources}]}},
                    kind=STRATEGIC_PATCH,
                    field_manager=OPERATOR_MANAGER,
                    timeout=TIMEOUT,
                )
            case Delete():
                await self._delete(step)
            case WriteIdentity():
                assert desired is not None
                return await self._write_identity(step, desired)
        return None

    async def _create(self, step: Create) -> Refusal | None:
        try:
            made = await self._api.create(
                step.kind.within(step.namespace), step.body, field_manager=OPERATOR_MANAGER, timeout=TIMEOUT
            )
        except KubeConflictError as error:
            if error.reason != "AlreadyExists":
                raise
            made = await self._api.get(step.kind.path(step.namespace, step.name), timeout=TIMEOUT)
            if not is_ours(made, instance=self._instance, owner=step.owner):
                text = f"{step.kind.value[1]}/{step.name} belongs to somebody else; it is left alone."
                return Refusal(kind=step.kind, status=409, message=text, reason="Foreign")
        self._remember(step.kind, made)
        return None

    async def _delete(self, step: Delete) -> None:
        grace = None if step.grace_seconds is None else timedelta(seconds=step.grace_seconds)
        try:
            await self._api.delete(
                step.kind.path(step.namespace, step.name),
                uid=step.uid,
                grace=grace,
                propagation="Background",
                timeout=TIMEOUT,
            )
        except KubeNotFoundError:
            pass
        except KubeConflictError as error:
            log.info("operator.not_deleted", kind=step.kind.value[1], name=step.name, error=error.message)
        self._mirrors.forget(step.kind, step.namespace, step.name)

    async def _write_identity(self, step: WriteIdentity, desired: Desired) -> Refusal | None:
        body = agent_secret(
            desired.sandbox,
            step.incarnation,
            self._identities.issue(step.incarnation),
            namespace=step.namespace,
            uid=desired.uid,
            instance=self._instance,
        )
        if not step.resource_version:
            return await self._create(
                Create(kind=Kind.SECRET, namespace=step.namespace, name=step.name, body=body, owner=desired.uid)
            )
        body["metadata"]["resourceVersion"] = step.resource_version
        written = await self._api.replace(
            Kind.SECRET.path(step.namespace, step.name), body, field_manager=OPERATOR_MANAGER, timeout=TIMEOUT
        )
        self._remember(Kind.SECRET, written)
        return None

    def _remember(self, kind: Kind, obj: Json) -> None:
        if kind is Kind.SECRET:
            obj = {key: value for key, value in obj.items() if key != "data"}  # keys are not kept
        self._mirrors.remember(kind, obj)
