"""Shows pools as `SandboxPool` resources, so that `kubectl get sandboxpools -A` tells what there is.

The rows of the database decide; what is here is put back when somebody else has changed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from typing_extensions import override

from sandboxd.backends.kubernetes.objects import Installation, SandboxObjects
from sandboxd.backends.kubernetes.refusals import ClusterUnavailableError
from sandboxd.kubeapi.client import segment
from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeNotFoundError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.kubeapi.reflector import Reflector
from sandboxd.manager.pool_ports import PoolBoard, ShownPool
from sandboxd.model.cluster import API_VERSION, INSTANCE_LABEL, POOLS, SERVE_MANAGER
from sandboxd.model.cluster_pool import PlacedPool, pool_resource
from sandboxd.model.errors import SandboxdError

ALL_POOLS: Final = f"/apis/{API_VERSION}/{POOLS}"
TIMEOUT: Final = timedelta(seconds=5)


class KubernetesPoolBoard(PoolBoard):
    """Writes the resources. `run` must run beside it."""

    def __init__(self, api: KubeApi, installation: Installation) -> None:
        self._api = api
        self._installation = installation
        self._objects = SandboxObjects(api, installation)
        self._written: dict[tuple[str, str], tuple[Json, frozenset[str]]] = {}
        """The spec written last, the version before and the one that came of it: the mirror is a moment behind, and
        older definitions do not keep every field."""
        self._seen = Reflector(api, ALL_POOLS, label_selector=f"{INSTANCE_LABEL}={installation.instance}")

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        await self._seen.run()

    @override
    async def show(self, pools: Sequence[ShownPool], *, recipe: str) -> None:
        if not self._seen.synced:
            return  # the next look comes in a second
        failures: list[SandboxdError] = []
        wanted = {(self._objects.namespace(one.pool.client), str(one.pool.id)): one for one in pools}
        for (namespace, name), one in wanted.items():
            try:
                await self._write(one, self._seen.get((namespace, name)), namespace=namespace, recipe=recipe)
            except KubeError as error:
                failures.append(_unshown(name, error))
        for obj in self._seen:
            meta = obj["metadata"]
            if (meta["namespace"], meta["name"]) in wanted or "deletionTimestamp" in meta:
                continue
            self._written.pop((meta["namespace"], meta["name"]), None)
            try:
                await self._api.delete(_path(meta["namespace"], meta["name"]), uid=meta["uid"], timeout=TIMEOUT)
            except (KubeNotFoundError, KubeConflictError):
                continue
            except KubeError as error:
                failures.append(_unshown(meta["name"], error))
        if failures:
            raise failures[0]

    async def _write(self, one: ShownPool, seen: Json | None, *, namespace: str, recipe: str) -> None:
        pool = one.pool
        placed = PlacedPool(
            pool=pool.id,
            client=pool.client,
            template=self._installation.template,
            tier=pool.tier,
            min=pool.size.min,
            target=pool.size.target,
            max=pool.size.max,
            wanted=one.wanted,
            recipe=recipe,
        )
        body = pool_resource(placed, namespace=namespace, instance=self._installation.instance)
        if seen is None:
            await self._create(body, one, namespace=namespace)
            return
        spec, version, key = body["spec"], str(seen["metadata"]["resourceVersion"]), (namespace, str(pool.id))
        if all(seen["spec"].get(name) == value for name, value in spec.items()):
            return
        written, versions = self._written.get(key, ({}, frozenset()))
        if written != spec or version not in versions:
            change = {"metadata": {"resourceVersion": version}, "spec": spec}
            answer = await self._api.patch(
                _path(namespace, pool.id), change, field_manager=SERVE_MANAGER, timeout=TIMEOUT
            )
            self._written[key] = (spec, frozenset({version, str(answer["metadata"]["resourceVersion"])}))

    async def _create(self, body: Json, one: ShownPool, *, namespace: str) -> None:
        path = f"/apis/{API_VERSION}/namespaces/{segment(namespace)}/{POOLS}"
        try:
            try:
                await self._api.create(path, body, field_manager=SERVE_MANAGER, timeout=TIMEOUT)
            except KubeNotFoundError:
                await self._objects.make_namespace(one.pool.client, timeout=TIMEOUT)
                await self._api.create(path, body, field_manager=SERVE_MANAGER, timeout=TIMEOUT)
        except KubeConflictError as error:
            if error.reason != "AlreadyExists":
                raise


def _unshown(pool: str, error: KubeError) -> SandboxdError:
    return ClusterUnavailableError(f"Pool {pool} cannot be shown in the cluster as it is: {error.message}", pool=pool)


def _path(namespace: str, name: str) -> str:
    return f"/apis/{API_VERSION}/namespaces/{segment(namespace)}/{POOLS}/{segment(name)}"
