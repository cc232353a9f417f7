"""What operator and cluster do, as `serve` sees it: pods are open ports with fake agents behind them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count

from sandboxd.kubeapi.errors import KubeNotFoundError
from sandboxd.kubeapi.ports import Json
from sandboxd.model.cluster import (
    INSTANCE_LABEL,
    KEPT_LABEL,
    SANDBOX_FINALIZER,
    SANDBOX_LABEL,
    Mode,
    PlacedSpec,
    claims_of,
    pod_of,
)
from sandboxd.model.cluster_status import Condition, ConditionType, PlacedState, PlacedStatus, Reason
from sandboxd.model.ids import SandboxId
from tests.fakes.agent import FakeAgent, FakeAgentConnector
from tests.fakes.kube import FakeKube

BASE_IMAGE = f"registry.example/sandboxd/sandbox@sha256:{'0' * 64}"


class FakeOperator:
    """Takes every change up as soon as it is written."""

    def __init__(self, kube: FakeKube, connector: FakeAgentConnector) -> None:
        self._kube = kube
        self._connector = connector
        self._servers: dict[str, asyncio.Server] = {}
        self._numbers = count(1)
        self.base = BASE_IMAGE
        """What its one template names."""
        self.down = False
        self.trouble: tuple[Reason, str] | None = None
        """Why no pod comes about."""
        self.lost: tuple[Reason, str] | None = None
        """How each pod ends before its agent answers."""
        self.mute = False
        """Pods come up, and no agent answers in them."""
        self.deaf = False
        """With `mute`: not even the kubelet finds the agent's port open."""
        self.pulling = False
        """Pods have a node and an address, and wait there for their image."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeOperator]:
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            for server in self._servers.values():
                server.close()

    async def _run(self) -> None:
        query = {"resourceVersion": "0"}
        while True:
            async with self._kube.stream(
                "/apis/sandboxd.dev/v1alpha1/sandboxes", query=query, silence=timedelta(1)
            ) as seen:
                async for event in seen:
                    query["resourceVersion"] = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "DELETED" and not self.down:
                        await self.reconcile(
                            event["object"]["metadata"]["namespace"], event["object"]["metadata"]["name"]
                        )

    async def come_back(self) -> None:
        """Look at everything that happened meanwhile."""
        self.down = False
        for obj in self._kube.all("sandboxes"):
            await self.reconcile(obj["metadata"]["namespace"], obj["metadata"]["name"])

    async def reconcile(self, namespace: str, name: str) -> None:
        obj = self._kube.objects.get(("sandboxes", namespace, name))
        if obj is None:
            return
        meta, spec = obj["metadata"], PlacedSpec.from_mapping(obj["spec"])
        status = PlacedStatus.from_mapping(obj.get("status") or {})
        sandbox = SandboxId(name)
        if "deletionTimestamp" in meta:
            await self._end_pod(namespace, sandbox)
            await self._keep_or_destroy(namespace, sandbox, kept=spec.kept)
            await self._kube.drop("sandboxes", namespace, name)
            return
        if SANDBOX_FINALIZER not in meta.get("finalizers", []):
            meta.setdefault("finalizers", []).append(SANDBOX_FINALIZER)
        pod = self._kube.objects.get(("pods", namespace, pod_of(sandbox)))
        if spec.mode is Mode.STOPPED:
            await self._end_pod(namespace, sandbox)
            made = PlacedStatus(
                state=PlacedState.STOPPED,
                reason=Reason.STOPPED,
                incarnation=spec.incarnation,
                next_image=spec.image or self.base,
            )
        elif self.trouble is not None:
            reason, message = self.trouble
            made = PlacedStatus(state=PlacedState.PENDING, reason=reason, message=message)
        elif self.lost is not None:
            reason, message = self.lost
            made = PlacedStatus(state=PlacedState.FAILED, reason=reason, message=message, incarnation=spec.incarnation)
        else:
            bound = status.incarnation == spec.incarnation and status.pod_uid
            if bound and (pod is None or pod["metadata"]["uid"] != status.pod_uid or _restarts(pod)):
                made = PlacedStatus(
                    state=PlacedState.FAILED,
                    reason=Reason.POD_DELETED,
                    incarnation=status.incarnation,
                    pod_uid=status.pod_uid,
                )
            elif bound:
                made = replace(status, next_image=spec.image or self.base)
            else:
                await self._end_pod(namespace, sandbox)
                await self._make_claims(namespace, sandbox)
                made = await self._start_pod(namespace, sandbox, spec)
        await self._write(obj, made)

    async def _write(self, obj: Json, status: PlacedStatus) -> None:
        mapping = status.as_mapping() | {"observedGeneration": obj["metadata"]["generation"]}
        if obj.get("status") != mapping:
            obj["status"] = mapping
            await self._kube.put("sandboxes", obj)

    async def _start_pod(self, namespace: str, sandbox: SandboxId, spec: PlacedSpec, *, port: int = 0) -> PlacedStatus:
        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", port)
        port = server.sockets[0].getsockname()[1]
        if self.mute or self.pulling:
            server.close()
        else:
            self._servers[sandbox] = server
            agent = FakeAgent(sandbox=sandbox, incarnation=spec.incarnation)
            self._connector.agents[f"127.0.0.1:{port}"] = agent
        pod = await self._kube.put(
            "pods",
            {
                "metadata": {"name": pod_of(sandbox), "namespace": namespace, "uid": f"pod-{next(self._numbers)}"},
                "status": {"phase": "Running", "containerStatuses": [{"restartCount": 0, "state": {"running": {}}}]},
            },
        )
        done = [ConditionType.SCHEDULED, ConditionType.VOLUMES_BOUND]
        if not self.pulling:
            done.append(ConditionType.AGENT_STARTED)
        return PlacedStatus(
            state=PlacedState.STARTING if self.pulling else PlacedState.RUNNING,
            reason=Reason.STARTING if self.pulling else Reason.AS_DESIRED,
            incarnation=spec.incarnation,
            pod_uid=pod["metadata"]["uid"],
            pod_ip="127.0.0.1",
            pod_name=pod_of(sandbox),
            image=spec.image or self.base,
            next_image=spec.image or self.base,
            agent_port=port,
            conditions=[
                Condition(type=ConditionType.READY, status=not (self.deaf or self.pulling), reason=Reason.AS_DESIRED),
                *(Condition(type=kind, status=True, reason=Reason.AS_DESIRED) for kind in done),
            ],
        )

    async def say(self, sandbox: SandboxId, reason: str, message: str, *, at: str) -> None:
        """The kubelet says something about the pod of a sandbox."""
        (obj,) = [one for one in self._kube.all("sandboxes") if one["metadata"]["name"] == sandbox]
        event = {
            "metadata": {"name": f"event-{next(self._numbers)}", "namespace": obj["metadata"]["namespace"]},
            "involvedObject": {"uid": obj["status"]["podUID"]},
            "reason": reason,
            "message": message,
            "lastTimestamp": at,
        }
        await self._kube.put("events", event)

    async def pulled(self, sandbox: SandboxId) -> None:
        """The image of a pod is there, and its container starts, at the same address."""
        self.pulling = False
        (obj,) = [one for one in self._kube.all("sandboxes") if one["metadata"]["name"] == sandbox]
        before = PlacedStatus.from_mapping(obj["status"])
        spec = PlacedSpec.from_mapping(obj["spec"])
        made = await self._start_pod(obj["metadata"]["namespace"], sandbox, spec, port=before.agent_port)
        await self._write(obj, made)

    async def _end_pod(self, namespace: str, sandbox: SandboxId) -> None:
        server = self._servers.pop(sandbox, None)
        if server is not None:
            port = server.sockets[0].getsockname()[1]
            server.close()
            if (agent := self._connector.agents.get(f"127.0.0.1:{port}")) is not None:
                agent.die()
        await self._kube.drop("pods", namespace, pod_of(sandbox))

    def kill(self, sandbox: SandboxId) -> None:
        """The container dies, and is started again by the kubelet; the operator has not seen it."""
        for obj in self._kube.all("sandboxes"):
            if obj["metadata"]["name"] == sandbox:
                namespace = obj["metadata"]["namespace"]
                pod = self._kube.objects[("pods", namespace, pod_of(sandbox))]
                pod["status"]["containerStatuses"][0]["restartCount"] = 1
                server = self._servers.pop(sandbox)
                self._connector.agents[f"127.0.0.1:{server.sockets[0].getsockname()[1]}"].die()
                server.close()

    async def _make_claims(self, namespace: str, sandbox: SandboxId) -> None:
        for claim in claims_of(sandbox).values():
            if ("persistentvolumeclaims", namespace, claim) not in self._kube.objects:
                labels = {INSTANCE_LABEL: "test", SANDBOX_LABEL: sandbox}
                await self._kube.put(
                    "persistentvolumeclaims",
                    {
                        "metadata": {"name": claim, "namespace": namespace, "uid": f"claim-{claim}", "labels": labels},
                        "spec": {"volumeName": f"pv-{claim}"},
                    },
                )

    async def _keep_or_destroy(self, namespace: str, sandbox: SandboxId, *, kept: bool) -> None:
        for claim in claims_of(sandbox).values():
            found = self._kube.objects.get(("persistentvolumeclaims", namespace, claim))
            if found is not None and kept:
                found["metadata"]["labels"][KEPT_LABEL] = "true"
            elif found is not None:
                with contextlib.suppress(KubeNotFoundError):
                    await self._kube.drop("persistentvolumeclaims", namespace, claim)


def _restarts(pod: Json) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])
