"""A cluster in memory whose volumes can be snapshotted: pods mount what their claims are bound to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

from typing_extensions import override

from sandboxd.kubeapi.errors import KubeNotFoundError
from sandboxd.kubeapi.ports import Json
from sandboxd.model.backup import Volume
from sandboxd.model.cluster import INSTANCE_LABEL, SANDBOX_LABEL, claims_of, namespace_resource
from sandboxd.model.ids import ClientId, SandboxId
from tests.eventually import eventually
from tests.fakes.backup_pods import BackupCluster
from tests.operator_world import INSTANCE
from tests.snapshot_driver import CORE, SNAPSHOTS, SnapshotDriver

CLASS = "snappy"


class SnapshotCluster(BackupCluster):
    """As `BackupCluster`; claims have volumes of a storage that makes snapshots."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.driver = SnapshotDriver(api=self, directory=directory / "storage", storage_class=CLASS, binds=True)
        self.flushed: list[str] = []
        """Claims that a pod had mounted before anything of them was cut."""
        self.knows_snapshots = True

    @override
    async def furnish(self) -> None:
        await super().furnish()
        await self.put("storageclasses", {"metadata": {"name": CLASS}, "volumeBindingMode": "Immediate"})

    @override
    async def get(self, path: str, *, query: Mapping[str, str] | None = None, timeout: timedelta | None = None) -> Json:
        if not self.knows_snapshots and path.startswith(SNAPSHOTS):
            raise KubeNotFoundError("the server could not find the requested resource", status=404, reason="NotFound")
        return await super().get(path, query=query, timeout=timeout)

    @override
    @asynccontextmanager
    async def running(self) -> AsyncIterator[BackupCluster]:
        async with super().running(), self.driver.running():
            yield self

    @override
    async def give(self, client: ClientId, sandbox: SandboxId) -> Mapping[Volume, Path]:
        """New claims with empty volumes, in place of what is there."""
        namespace = namespace_resource(client, prefix="client-", instance=INSTANCE)
        name = namespace["metadata"]["name"]
        if ("namespaces", "", name) not in self.objects:
            await self.create("/api/v1/namespaces", namespace)
        await self._lose(name, sandbox)
        labels = {INSTANCE_LABEL: INSTANCE, SANDBOX_LABEL: sandbox}
        for claim in claims_of(sandbox).values():
            body = {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim, "namespace": name, "labels": labels},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}},
                    "storageClassName": CLASS,
                },
            }
            await self.create(f"{CORE}/namespaces/{name}/persistentvolumeclaims", body)
        await eventually(lambda: all(self.phase(name, claim) == "Bound" for claim in claims_of(sandbox).values()))
        return self.places(sandbox)

    @override
    async def take_away(self, client: ClientId, sandbox: SandboxId) -> None:
        await self._lose(f"client-{client}", sandbox)

    @override
    def places(self, sandbox: SandboxId) -> Mapping[Volume, Path]:
        found = {
            one["metadata"]["name"]: one["spec"].get("volumeName", "") for one in self.all("persistentvolumeclaims")
        }
        return {
            Volume(volume): self.driver.place(found[name])
            for volume, name in claims_of(sandbox).items()
            if found.get(name)
        }

    def phase(self, namespace: str, claim: str) -> str:
        """Of a claim; empty where there is none."""
        found = self.objects.get(("persistentvolumeclaims", namespace, claim), {})
        return str((found.get("status") or {}).get("phase", ""))

    def names(self, kind: str) -> list[str]:
        """Names of all objects of a kind."""
        return [one["metadata"]["name"] for one in self.all(kind)]

    async def _lose(self, namespace: str, sandbox: SandboxId) -> None:
        for claim in claims_of(sandbox).values():
            with suppress(KubeNotFoundError):
                await self.delete(f"{CORE}/namespaces/{namespace}/persistentvolumeclaims/{claim}")
        await eventually(
            lambda: (
                not any(
                    one["spec"]["claimRef"]["name"] in claims_of(sandbox).values()
                    and one["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
                    for one in self.all("persistentvolumes")
                )
            )
        )

    @override
    def _claim_place(self, namespace: str, claim: str, volume: str) -> Path:
        found = self.objects["persistentvolumeclaims", namespace, claim]
        assert (found.get("status") or {}).get("phase") == "Bound", "a pod waits for its volumes"
        self.flushed.append(claim)
        return self.driver.place(found["spec"]["volumeName"])
