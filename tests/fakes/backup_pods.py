"""A cluster in memory whose pods of backups work, in this process; directories are its volumes."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from typing_extensions import override

from sandboxd.bootstrap.backup_worker import INTERRUPTED_STATUS, WorkerPlaces, work_once
from sandboxd.kubeapi.ports import Json
from sandboxd.model.backup import Volume
from sandboxd.model.cluster import INSTANCE_LABEL, SANDBOX_LABEL, claims_of, namespace_resource
from sandboxd.model.cluster_backup import BACKUP_CONTAINER, BACKUP_LABEL, PROGRESS_EVENT
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.volumes.ports import BackupRepository
from tests.fakes.backups import FakeBackupRepository
from tests.fakes.controllers import FakeCluster
from tests.operator_world import INSTANCE

LOCATION = "s3:http://storage.test/backups/all"
"""What the operator is told; the worker finds a directory there."""


class BackupCluster(FakeCluster):
    """Runs every pod of a `SandboxBackup` as soon as it is written. Claims are made by whoever writes them."""

    def __init__(self, directory: Path, *, restic: Path | None = None) -> None:
        """Take where everything is, and restic; without it repositories are fakes that copy trees."""
        super().__init__()
        self.directory = directory
        self._restic = restic
        self.repositories: dict[str, FakeBackupRepository] = {}
        """By the directories that stand for their locations."""
        self.begun: list[str] = []
        """Names of pods, in the order of their beginning."""
        self.held = asyncio.Event()
        """Workers wait for it before they begin; set from the beginning."""
        self.held.set()
        self._working: dict[str, asyncio.Task[None]] = {}

    @override
    async def create(self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None) -> Json:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        dated = {**body, "metadata": {**body["metadata"], "creationTimestamp": now}}
        return await super().create(path, dated, field_manager=field_manager, timeout=timeout)

    async def furnish(self) -> None:
        """What is there before anything: our namespace and a template."""
        await self.put("namespaces", {"metadata": {"name": "own"}})
        template = {"image": "registry.example/sandbox@sha256:1", "agentImage": "registry.example/agent@sha256:2"}
        await self.put("sandboxtemplates", {"metadata": {"name": "default"}, "spec": template})

    async def give(self, client: ClientId, sandbox: SandboxId) -> Mapping[Volume, Path]:
        """A sandbox's claims and their empty directories."""
        namespace = namespace_resource(client, prefix="client-", instance=INSTANCE)
        if ("namespaces", "", namespace["metadata"]["name"]) not in self.objects:
            await self.create("/api/v1/namespaces", namespace)
        labels = {INSTANCE_LABEL: INSTANCE, SANDBOX_LABEL: sandbox}
        for name in claims_of(sandbox).values():
            metadata = {"name": name, "namespace": namespace["metadata"]["name"], "labels": labels, "uid": name}
            await self.put("persistentvolumeclaims", {"metadata": metadata, "status": {"phase": "Bound"}})
        places = self.places(sandbox)
        for place in places.values():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        return places

    async def take_away(self, client: ClientId, sandbox: SandboxId) -> None:
        """Its volumes are no more."""
        for volume, name in claims_of(sandbox).items():
            await self.drop("persistentvolumeclaims", f"client-{client}", name)
            shutil.rmtree(self.places(sandbox)[Volume(volume)])

    def places(self, sandbox: SandboxId) -> Mapping[Volume, Path]:
        """Where its volumes are."""
        claims = self.directory / "claims"
        return {Volume(volume): claims / name / volume for volume, name in claims_of(sandbox).items()}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[BackupCluster]:
        """Be the kubelet."""
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            for one in (task, *self._working.values()):
                one.cancel()
            await asyncio.gather(task, *self._working.values(), return_exceptions=True)

    async def lose(self, pod: str, *, reason: str = "Evicted") -> None:
        """A pod ends without a word of its own, with all that it had on its disk."""
        working = self._working.pop(pod)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        for found in self.all("pods"):
            if found["metadata"]["name"] == pod:
                await self.put("pods", {**found, "status": {"phase": "Failed", "reason": reason}})

    async def _run(self) -> None:
        query = {"resourceVersion": "0"}
        while True:
            async with self.stream("/api/v1/pods", query=query, silence=timedelta(1)) as events:
                async for event in events:
                    pod = event["object"]
                    query["resourceVersion"] = pod["metadata"]["resourceVersion"]
                    name = pod["metadata"]["name"]
                    if event["type"] == "ADDED" and BACKUP_LABEL in pod["metadata"]["labels"]:
                        self._working[name] = asyncio.create_task(self._work_of(pod), name=name)
                    elif event["type"] == "DELETED" and name in self._working:
                        self._working.pop(name).cancel()

    async def _work_of(self, pod: Json) -> None:
        name = pod["metadata"]["name"]
        self.begun.append(name)
        await self._say(pod, {"running": {}})
        await self.held.wait()
        places = self._mount(pod)
        (container,) = pod["spec"]["containers"]
        _, _, attempt, _, seconds = container["args"]
        lines = self.logs.setdefault(name, [])
        try:
            code = await work_once(
                places,
                attempt=int(attempt),
                timeout=timedelta(seconds=int(seconds)),
                open_repository=None if self._restic is not None else self._fake_repository,
                tell=lambda words: lines.append(json.dumps({"event": PROGRESS_EVENT, **words}) + "\n"),
            )
        except asyncio.CancelledError:
            code = INTERRUPTED_STATUS
        said = places.message.read_text() if places.message.exists() else ""
        await self._say(pod, {"terminated": {"exitCode": code, "reason": "Completed", "message": said}})

    def _fake_repository(self, order: Mapping[str, Any], places: WorkerPlaces, attempt: int) -> BackupRepository:
        del places, attempt
        location = str(order["location"])
        return self.repositories.setdefault(location, FakeBackupRepository(directory=Path(location)))

    async def _say(self, pod: Json, state: Json) -> None:
        key = ("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
        if (found := self.objects.get(key)) is not None and found["metadata"]["uid"] == pod["metadata"]["uid"]:
            containers = [{"name": BACKUP_CONTAINER, "state": state}]
            await self.put("pods", {**found, "status": {"phase": "Running", "containerStatuses": containers}})

    def _claim_place(self, namespace: str, claim: str, volume: str) -> Path:
        """Where a pod finds the volume of a claim."""
        place = self.directory / "claims" / claim / volume
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _mount(self, pod: Json) -> WorkerPlaces:
        root = self.directory / "pods" / pod["metadata"]["uid"]
        volumes: dict[Volume, Path] = {}
        places = WorkerPlaces(
            config=root / "config",
            volumes=volumes,
            work=root / "work",
            message=root / "message",
            restic=str(self._restic or "none"),
        )
        for place in (places.config, places.work):
            place.mkdir(parents=True)
        namespace = pod["metadata"]["namespace"]
        for volume in pod["spec"]["volumes"]:
            if "secret" in volume:
                data = self.objects["secrets", namespace, volume["secret"]["secretName"]]["data"]
                for entry, value in data.items():
                    (places.config / entry).write_bytes(base64.b64decode(value))
            elif "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("persistentvolumeclaims", namespace, claim) in self.objects
                volumes[Volume(volume["name"])] = self._claim_place(namespace, claim, volume["name"])
        order = json.loads((places.config / "order.json").read_text())
        order["location"] = order["location"].replace(LOCATION, str(self.directory / "storage"))
        (places.config / "order.json").write_text(json.dumps(order))
        (places.config / "s3-credentials").unlink()
        return places
