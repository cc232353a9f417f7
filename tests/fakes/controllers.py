"""A cluster in memory as the operator sees it: StatefulSets have pods at once, and whoever writes may die of it."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any

from typing_extensions import override

from sandboxd.kubeapi.errors import KubeConflictError
from sandboxd.kubeapi.ports import MERGE_PATCH, Json, KubeApi
from sandboxd.model.cluster import INCARNATION_ANNOTATION, INSTANCE_LABEL
from tests.fakes.kube import FakeKube

_SUBRESOURCE = re.compile(r"/(status|resize)$")


class FakeCluster(FakeKube):
    """With the StatefulSet's controller, the kubelet and the garbage collector: each write has its effect at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pods_made: list[str] = []
        """Incarnation of each pod, in the order of their beginning."""
        self.told: list[str] = []
        """Reasons of Events."""

    @override
    async def create(self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None) -> Json:
        if body["kind"] == "Event":
            self.told.append(body["reason"])
            return body
        made = await super().create(path, body, field_manager=field_manager, timeout=timeout)
        await self._work()
        return made

    @override
    async def patch(
        self,
        path: str,
        body: object,
        *,
        kind: str = MERGE_PATCH,
        field_manager: str = "",
        force: bool = False,
        timeout: timedelta | None = None,
    ) -> Json:
        found = _SUBRESOURCE.search(path)
        base = path if found is None else path.removesuffix(found[0])
        assert isinstance(body, dict)
        self._require_version(base, body)
        if found is not None and found[1] == "resize":
            kind_, namespace, name = self._begin("PATCH", base)
            pod = copy.deepcopy(self._find(kind_, namespace, name))
            (given,) = body["spec"]["containers"]
            pod["spec"]["containers"][0]["resources"] = {
                part: {**pod["spec"]["containers"][0]["resources"].get(part, {}), **values}
                for part, values in given["resources"].items()
            }
            return await self.put("pods", pod)
        patched = await super().patch(base, body, kind=kind, field_manager=field_manager, timeout=timeout)
        await self._work()
        return patched

    @override
    async def replace(
        self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None
    ) -> Json:
        self._require_version(path, body)
        kind, namespace, name = self._begin("PUT", path)
        uid = self._find(kind, namespace, name)["metadata"]["uid"]
        return await self.put(kind, {**body, "metadata": {**body["metadata"], "uid": uid}})

    @override
    async def delete(
        self,
        path: str,
        *,
        uid: str = "",
        resource_version: str = "",
        grace: timedelta | None = None,
        propagation: str = "",
        timeout: timedelta | None = None,
    ) -> Json:
        answer = await super().delete(path, uid=uid)
        await self._work()
        return answer

    def _require_version(self, path: str, body: Json) -> None:
        version = body["metadata"].get("resourceVersion") if "metadata" in body else None
        if version and self._find(*self._begin("GET", path))["metadata"]["resourceVersion"] != version:
            raise KubeConflictError("it was changed meanwhile", status=409, reason="Conflict")

    async def _work(self) -> None:
        """What the cluster's own controllers do of it."""
        for (kind, namespace, name), obj in tuple(self.objects.items()):
            if obj["metadata"].get("deletionTimestamp") and not obj["metadata"].get("finalizers"):
                await self.drop(kind, namespace, name)
        uids = {obj["metadata"].get("uid") for obj in self.objects.values()}
        for (kind, namespace, name), obj in tuple(self.objects.items()):
            owners = obj["metadata"].get("ownerReferences", ())
            if owners and not any(owner["uid"] in uids for owner in owners):
                await self.drop(kind, namespace, name)
        for found in self.all("statefulsets"):
            await self._scale(found)

    async def _scale(self, found: Json) -> None:
        namespace, name = found["metadata"]["namespace"], found["metadata"]["name"]
        text = json.dumps(found["spec"]["template"], sort_keys=True).encode()
        revision = hashlib.sha256(text).hexdigest()[:10]
        status = {"observedGeneration": found["metadata"]["generation"], "updateRevision": revision}
        if found.get("status") != status:
            await self.put("statefulsets", {**found, "status": status})
        key = ("pods", namespace, f"{name}-0")
        if found["spec"]["replicas"] == 0:
            await self.drop(*key)
        elif key not in self.objects:
            await self._make_claims(found)
            await self.put("pods", self._pod(found, revision))

    def _pod(self, found: Json, revision: str) -> Json:
        template, meta = copy.deepcopy(found["spec"]["template"]), found["metadata"]
        self.pods_made.append(template["metadata"]["annotations"][INCARNATION_ANNOTATION])
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **template["metadata"],
                "name": f"{meta['name']}-0",
                "namespace": meta["namespace"],
                "uid": f"pod-{len(self.pods_made)}",
                "labels": {**template["metadata"]["labels"], "controller-revision-hash": revision},
                "ownerReferences": [{"kind": "StatefulSet", "name": meta["name"], "uid": meta["uid"]}],
            },
            "spec": {**template["spec"], "nodeName": "node1"},
            "status": {
                "phase": "Running",
                "podIP": "10.88.0.7",
                "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "sandbox", "state": {"running": {}}, "restartCount": 0}],
            },
        }

    async def _make_claims(self, found: Json) -> None:
        namespace = found["metadata"]["namespace"]
        for template in found["spec"]["volumeClaimTemplates"]:
            name = f"{template['metadata']['name']}-{found['metadata']['name']}-0"
            if ("persistentvolumeclaims", namespace, name) in self.objects:
                continue
            size = template["spec"]["resources"]["requests"]["storage"]
            made = {"uid": f"uid-{name}", "generation": 1}
            await self.put(
                "persistentvolumeclaims",
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "metadata": {**template["metadata"], "name": name, "namespace": namespace, **made},
                    "spec": {**template["spec"], "storageClassName": "standard", "volumeName": f"pv-{name}"},
                    "status": {"phase": "Bound", "capacity": {"storage": size}},
                },
            )

    def snapshot(self) -> dict[str, Any]:
        """Everything of ours that lasts, without what is made up anew each time."""
        return {
            "/".join(key): _lasting(obj)
            for key, obj in sorted(self.objects.items())
            if obj["metadata"].get("labels", {}).get(INSTANCE_LABEL) and key[0] != "leases"
        }


def _lasting(obj: Json) -> Json:
    meta = obj["metadata"]
    made_up = ("podUID", "startTime", "conditions")
    status = {name: value for name, value in obj.get("status", {}).items() if name not in made_up}
    conditions = obj.get("status", {}).get("conditions", ())
    return {
        "labels": meta.get("labels"),
        "annotations": meta.get("annotations"),
        "finalizers": meta.get("finalizers"),
        "owners": [owner["kind"] for owner in meta.get("ownerReferences", ())],
        "spec": obj.get("spec"),
        "status": status,
        "conditions": [(one["type"], one["status"], one.get("reason")) for one in conditions],
    }


class Died(BaseException):
    """The process is no more. Nothing of ours may catch it."""


class MortalApi(KubeApi):
    """The cluster as one life of a process reaches it, which ends at its nth write."""

    def __init__(self, api: KubeApi, *, dies_at: int, done: bool) -> None:
        """Say when it dies.

        Args:
            api: The cluster.
            dies_at: Number of the write; 0 is never. Leases do not count.
            done: True dies of a write that was done, and not answered; False before it was sent.
        """
        self._api = api
        self._dies_at = dies_at
        self._done = done
        self._writes = 0
        self.dead = False
        self.struck = False
        """True once it has died of a write."""

    async def _write(self, path: str, call: Any) -> Json:
        self._live()
        if "/leases" in path or "/events" in path:
            return dict(await call())
        self._writes += 1
        strikes = self._writes == self._dies_at
        if strikes and not self._done:
            self.dead = self.struck = True
            raise Died
        answer: Json = await call()
        if strikes:
            self.dead = self.struck = True
        self._live()
        return answer

    def _live(self) -> None:
        if self.dead:
            raise Died

    @override
    async def get(self, path: str, *, query: Mapping[str, str] | None = None, timeout: timedelta | None = None) -> Json:
        self._live()
        return await self._api.get(path, query=query, timeout=timeout)

    @override
    async def text(self, path: str, *, query: Mapping[str, str], timeout: timedelta | None = None) -> str:
        self._live()
        return await self._api.text(path, query=query, timeout=timeout)

    @override
    async def create(self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None) -> Json:
        return await self._write(path, lambda: self._api.create(path, body))

    @override
    async def patch(
        self,
        path: str,
        body: object,
        *,
        kind: str = MERGE_PATCH,
        field_manager: str = "",
        force: bool = False,
        timeout: timedelta | None = None,
    ) -> Json:
        return await self._write(path, lambda: self._api.patch(path, body, kind=kind))

    @override
    async def replace(
        self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None
    ) -> Json:
        return await self._write(path, lambda: self._api.replace(path, body))

    @override
    async def delete(
        self,
        path: str,
        *,
        uid: str = "",
        resource_version: str = "",
        grace: timedelta | None = None,
        propagation: str = "",
        timeout: timedelta | None = None,
    ) -> Json:
        return await self._write(path, lambda: self._api.delete(path, uid=uid))

    @override
    def stream(
        self, path: str, *, query: Mapping[str, str], silence: timedelta
    ) -> AbstractAsyncContextManager[AsyncIterator[Json]]:
        self._live()
        return self._api.stream(path, query=query, silence=silence)
