"""Reads and writes what `serve` owns in the cluster: `Sandbox` resources, a client's namespace, claims that are left.

Only requests; what they mean together is the backend's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sandboxd.backends.kubernetes.placed import Placed
from sandboxd.kubeapi.client import segment
from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeInvalidError, KubeNotFoundError
from sandboxd.kubeapi.ports import JSON_PATCH, MERGE_PATCH, Json, KubeApi
from sandboxd.model.cluster import (
    API_VERSION,
    CLIENT_ANNOTATION,
    INSTANCE_LABEL,
    SANDBOX_LABEL,
    SANDBOXES,
    SERVE_MANAGER,
    Mode,
    PlacedSpec,
    namespace_of,
    pod_of,
    sandbox_resource,
)
from sandboxd.model.ids import ClientId, SandboxId

ALL_SANDBOXES: Final = f"/apis/{API_VERSION}/{SANDBOXES}"
FILES_ANNOTATION: Final = "sandboxd.dev/files"
"""On a claim: files and bytes of the sandbox when they were last counted, `12,3456`."""
POD_SECURITY: Final = {f"pod-security.kubernetes.io/{mode}": "baseline" for mode in ("enforce", "warn", "audit")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What is ours in the cluster."""

    instance: str
    namespace_prefix: str
    template: str
    premium_gpus: int = 0
    """How many GPUs a sandbox of the tier premium has."""


class SandboxObjects:
    """The requests.

    Raises (every method):
        KubeError: As the API said.
    """

    def __init__(self, api: KubeApi, installation: Installation) -> None:
        self._api = api
        self._installation = installation

    def namespace(self, client: ClientId) -> str:
        """The namespace of a client."""
        return namespace_of(client, prefix=self._installation.namespace_prefix)

    async def get(self, namespace: str, sandbox: SandboxId, *, timeout: timedelta | None = None) -> Placed | None:
        """One resource; None where it, or its namespace, does not exist."""
        try:
            return Placed.of(await self._api.get(_path(namespace, sandbox), timeout=timeout))
        except KubeNotFoundError:
            return None

    async def search(self, sandbox: SandboxId, *, timeout: timedelta | None = None) -> Placed | None:
        """One resource, in whatever namespace it is."""
        query = {"fieldSelector": f"metadata.name={sandbox}", "labelSelector": self._ours()}
        found = (await self._api.get(ALL_SANDBOXES, query=query, timeout=timeout)).get("items") or []
        return Placed.of(found[0]) if found else None

    async def create(self, sandbox: SandboxId, spec: PlacedSpec, *, timeout: timedelta | None = None) -> Placed:
        """Write a new resource, with the client's namespace where that is absent.

        Raises:
            KubeConflictError: It exists.
        """
        namespace = self.namespace(spec.client)
        body = sandbox_resource(sandbox, spec, namespace=namespace, instance=self._installation.instance)
        try:
            return await self._post(namespace, body, timeout)
        except KubeNotFoundError:
            await self.make_namespace(spec.client, timeout=timeout)
        return await self._post(namespace, body, timeout)

    async def change(
        self,
        placed: Placed,
        changes: Mapping[str, Any],  # Any: JSON
        *,
        unless_changed: Sequence[str] = (),
        timeout: timedelta | None = None,
    ) -> Placed:
        """Set fields of the spec, provided that nobody has given the sandbox another incarnation meanwhile.

        Nor changed any of the other fields that are named.

        Raises:
            KubeConflictError: Somebody has.
        """
        steps: list[Json] = [{"op": "test", "path": "/metadata/uid", "value": placed.uid}]
        seen = placed.spec.as_mapping()
        same = ("incarnation", *unless_changed)
        steps += [{"op": "test", "path": f"/spec/{name}", "value": seen[name]} for name in same]
        steps += [{"op": "add", "path": f"/spec/{name}", "value": value} for name, value in changes.items()]
        path = _path(placed.namespace, placed.sandbox)
        try:
            answer = await self._api.patch(path, steps, kind=JSON_PATCH, field_manager=SERVE_MANAGER, timeout=timeout)
        except KubeInvalidError as error:
            if "test" not in error.message.lower():
                raise
            raise KubeConflictError(error.message, status=409, reason="Conflict") from error
        return Placed.of(answer)

    async def set_mode(self, placed: Placed, mode: Mode, *, timeout: timedelta | None = None) -> Placed:
        """Set the mode, unless it is so."""
        if placed.spec.mode is mode:
            return placed
        return await self.change(placed, {"mode": mode.value}, timeout=timeout)

    async def delete(self, placed: Placed, *, timeout: timedelta | None = None) -> None:
        """Delete that very resource. Absent is success."""
        try:
            await self._api.delete(_path(placed.namespace, placed.sandbox), uid=placed.uid, timeout=timeout)
        except (KubeNotFoundError, KubeConflictError):  # a conflict: another one has its name by now
            return

    async def pod(self, placed: Placed, *, timeout: timedelta | None = None) -> Json | None:
        """The sandbox's pod as the cluster has it."""
        path = f"/api/v1/namespaces/{segment(placed.namespace)}/pods/{segment(pod_of(placed.sandbox))}"
        try:
            return await self._api.get(path, timeout=timeout)
        except KubeNotFoundError:
            return None

    async def pull_messages(self, placed: Placed, *, timeout: timedelta) -> Sequence[str]:
        """What the kubelet said of images that the sandbox's present pod has."""
        return [str(one.get("message", "")) for one in await self.events(placed, "reason=Pulled", timeout=timeout)]

    async def events(self, placed: Placed, *fields: str, timeout: timedelta) -> Sequence[Json]:
        """What was said about the sandbox's present pod, as far as the cluster keeps it; of these fields alone."""
        if not placed.status.pod_uid:
            return []
        path = f"/api/v1/namespaces/{segment(placed.namespace)}/events"
        selector = ",".join((f"involvedObject.uid={placed.status.pod_uid}", *fields))
        found = await self._api.get(path, query={"fieldSelector": selector}, timeout=timeout)
        return list(found.get("items") or ())

    async def claims(self, sandbox: SandboxId, *, timeout: timedelta | None = None) -> Sequence[Json]:
        """The claims of a sandbox, also of one that was removed, by name."""
        query = {"labelSelector": f"{self._ours()},{SANDBOX_LABEL}={sandbox}"}
        found = await self._api.get("/api/v1/persistentvolumeclaims", query=query, timeout=timeout)
        return sorted(found.get("items") or (), key=lambda claim: str(claim["metadata"]["name"]))

    async def delete_claim(self, claim: Json, *, timeout: timedelta | None = None) -> None:
        """Delete that very claim. Absent is success."""
        try:
            await self._api.delete(_claim_path(claim), uid=claim["metadata"]["uid"], timeout=timeout)
        except (KubeNotFoundError, KubeConflictError):
            return

    async def annotate_claim(self, claim: Json, name: str, value: str, *, timeout: timedelta | None = None) -> None:
        """Note something on a claim."""
        body = {"metadata": {"annotations": {name: value}}}
        await self._api.patch(_claim_path(claim), body, kind=MERGE_PATCH, field_manager=SERVE_MANAGER, timeout=timeout)

    async def volume(self, name: str, *, timeout: timedelta | None = None) -> Json | None:
        """A PersistentVolume."""
        try:
            return await self._api.get(f"/api/v1/persistentvolumes/{segment(name)}", timeout=timeout)
        except KubeNotFoundError:
            return None

    def _ours(self) -> str:
        return f"{INSTANCE_LABEL}={self._installation.instance}"

    async def _post(self, namespace: str, body: Json, timeout: timedelta | None) -> Placed:
        path = f"/apis/{API_VERSION}/namespaces/{segment(namespace)}/{SANDBOXES}"
        return Placed.of(await self._api.create(path, body, field_manager=SERVE_MANAGER, timeout=timeout))

    async def make_namespace(self, client: ClientId, *, timeout: timedelta | None = None) -> None:
        """Make a client's namespace. Being there is success."""
        body = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": self.namespace(client),
                "labels": {INSTANCE_LABEL: self._installation.instance, **POD_SECURITY},
                "annotations": {CLIENT_ANNOTATION: client},
            },
        }
        try:
            await self._api.create("/api/v1/namespaces", body, field_manager=SERVE_MANAGER, timeout=timeout)
        except KubeConflictError as error:
            if error.reason != "AlreadyExists":
                raise


def lost_pod(placed: Placed, pod: Json | None) -> str:
    """Why the pod is no longer the incarnation that the status tells of; empty while it is."""
    if pod is None:
        return "its pod is gone"
    meta, status = pod["metadata"], pod.get("status") or {}
    if placed.status.pod_uid and meta["uid"] != placed.status.pod_uid:
        return "its pod was replaced"
    if "deletionTimestamp" in meta:
        return "its pod is being deleted"
    if status.get("phase") in ("Failed", "Succeeded"):
        return f"its pod has ended ({status.get('reason') or status['phase']})"
    for container in status.get("containerStatuses") or ():
        if container.get("restartCount", 0) or "terminated" in (container.get("state") or {}):
            return "its container has ended"
    return ""


def missing_kind(error: KubeError) -> bool:
    """Tell whether the resources of sandboxd.dev are not installed."""
    return isinstance(error, KubeNotFoundError) and "could not find the requested resource" in error.message


def _path(namespace: str, sandbox: SandboxId) -> str:
    return f"/apis/{API_VERSION}/namespaces/{segment(namespace)}/{SANDBOXES}/{segment(sandbox)}"


def _claim_path(claim: Json) -> str:
    meta = claim["metadata"]
    return f"/api/v1/namespaces/{segment(meta['namespace'])}/persistentvolumeclaims/{segment(meta['name'])}"
