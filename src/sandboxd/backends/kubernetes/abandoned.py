"""What the cluster has of ours, needed or not: claims, volumes that outlived them, namespaces, and ended work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from typing_extensions import override

from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.refusals import translated
from sandboxd.kubeapi.client import segment
from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeNotFoundError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.manager.abandoned_ports import AbandonedPlace
from sandboxd.model.abandoned import AbandonedKind, AbandonedReason, Thing
from sandboxd.model.cluster import API_VERSION, CLIENT_ANNOTATION, INSTANCE_LABEL, SANDBOX_LABEL
from sandboxd.model.cluster_backup import BACKUPS, KEPT, RESTORE_LABEL
from sandboxd.model.errors import ConflictError, DeadlineError
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.quantity import parse_quantity
from sandboxd.model.sources import Clock

_SANDBOX: Final = re.compile(r"sbx-[0-9a-z]{1,26}$")
LATE: Final = timedelta(hours=1)
"""How long after its time the operator may take to remove work."""
_CONTENTS: Final = (
    ("/api/v1", "persistentvolumeclaims"),
    ("/api/v1", "pods"),
    ("/apis/apps/v1", "statefulsets"),
    (f"/apis/{API_VERSION}", "sandboxes"),
    (f"/apis/{API_VERSION}", BACKUPS),
)
"""What keeps a namespace: each kind that `serve` may list, and that holds or makes something."""


class ClusterObjects(AbandonedPlace):
    """Asks the API server itself. Ours is what carries the installation's label, and nothing else."""

    def __init__(self, api: KubeApi, *, installation: Installation, clock: Clock) -> None:
        self._api = api
        self._installation = installation
        self._clock = clock

    @property
    @override
    def place(self) -> str:
        return "the cluster"

    @override
    async def look(self, *, timeout: timedelta) -> Sequence[Thing]:
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                claims = await self._list("/api/v1/persistentvolumeclaims")
                namespaces = await self._list("/api/v1/namespaces")
                volumes = (await self._api.get("/api/v1/persistentvolumes")).get("items") or ()
                works = await self._list(f"/apis/{API_VERSION}/{BACKUPS}")
                sandboxes = await self._list(f"/apis/{API_VERSION}/sandboxes")
        except KubeError as error:
            raise translated(error, "What the cluster has cannot be listed", sandbox="") from error
        except TimeoutError as error:
            raise DeadlineError("The cluster did not tell in time what it has.") from error
        used = {str(one["metadata"]["namespace"]) for one in (*claims, *sandboxes)}
        return [
            *(_claim(claim) for claim in claims if SANDBOX_LABEL in (claim["metadata"].get("labels") or {})),
            *(_volume(one) for one in volumes if self._outlived(one)),
            *(_namespace(one, empty=one["metadata"]["name"] not in used) for one in namespaces),
            *(_work(one) for one in works if self._over(one)),
        ]

    @override
    async def remove(self, thing: Thing, *, timeout: timedelta) -> None:
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                await self._remove(thing)
        except (KubeNotFoundError, KubeConflictError):
            return  # a conflict: another one has its name by now
        except KubeError as error:
            raise translated(error, f"{thing.name} cannot be removed", sandbox=thing.sandbox or "") from error
        except TimeoutError as error:
            raise DeadlineError(f"{thing.name} is still there.") from error

    async def _remove(self, thing: Thing) -> None:
        namespace, _, name = thing.name.partition("/")
        match thing.kind:
            case AbandonedKind.VOLUME:
                if await self._placed(thing):
                    raise ConflictError(f"A Sandbox resource of {thing.sandbox} is there.")
                path = f"/api/v1/namespaces/{segment(namespace)}/persistentvolumeclaims/{segment(name)}"
            case AbandonedKind.WORK:
                path = f"/apis/{API_VERSION}/namespaces/{segment(namespace)}/{BACKUPS}/{segment(name)}"
            case AbandonedKind.NAMESPACE:
                await self._require_empty(thing.name)
                path = f"/api/v1/namespaces/{segment(thing.name)}"
            case _:
                raise ConflictError(f"{thing.name} is not removed here.")
        await self._api.delete(path, uid=thing.identity, propagation="Background")

    async def _require_empty(self, namespace: str) -> None:
        """Raise ConflictError where anything is in a namespace that somebody may miss, whoever made it."""
        for group, kind in _CONTENTS:
            path = f"{group}/namespaces/{segment(namespace)}/{kind}"
            if found := (await self._api.get(path, query={"limit": "1"})).get("items"):
                name = found[0]["metadata"]["name"]
                raise ConflictError(f"Namespace {namespace} is not empty: {kind} {name} is there.")

    async def _placed(self, thing: Thing) -> bool:
        path = f"/apis/{API_VERSION}/sandboxes"
        found = await self._api.get(path, query={"fieldSelector": f"metadata.name={thing.sandbox}"})
        return bool(found.get("items"))

    async def _list(self, path: str) -> Sequence[Json]:
        query = {"labelSelector": f"{INSTANCE_LABEL}={self._installation.instance}"}
        return (await self._api.get(path, query=query)).get("items") or ()

    def _outlived(self, volume: Json) -> bool:
        """Tell whether it was a volume of ours, and its claim is gone: nobody labels these, so names decide."""
        claim = volume["spec"].get("claimRef") or {}
        ours = str(claim.get("namespace", "")).startswith(self._installation.namespace_prefix)
        named = "-sbx-" in str(claim.get("name", ""))
        return ours and named and (volume.get("status") or {}).get("phase") == "Released"

    def _over(self, work: Json) -> bool:
        """Tell whether the operator should have removed it long ago."""
        born = datetime.fromisoformat(str(work["metadata"]["creationTimestamp"]))
        span = timedelta(seconds=int(work["spec"]["deadlineSeconds"]))
        return born + span + KEPT + LATE < self._clock.now()


def _claim(claim: Json) -> Thing:
    meta = claim["metadata"]
    capacity = (claim.get("status") or {}).get("capacity") or {}
    return Thing(
        kind=AbandonedKind.VOLUME,
        name=f"{meta['namespace']}/{meta['name']}",
        identity=str(meta.get("uid", "")),
        size_bytes=int(parse_quantity(str(capacity["storage"]))) if "storage" in capacity else None,
        storage=str((claim.get("spec") or {}).get("storageClassName") or ""),
        sandbox=SandboxId(meta["labels"][SANDBOX_LABEL]),
    )


def _volume(volume: Json) -> Thing:
    meta, spec = volume["metadata"], volume["spec"]
    sandbox = _SANDBOX.search(str((spec.get("claimRef") or {}).get("name", "")))
    left = RESTORE_LABEL in (meta.get("labels") or {})
    # Without its claim nobody but its storage knows how its content goes: deleting the object would leave that there.
    return Thing(
        # What gave way to a restore is that restore's as long as it works.
        kind=AbandonedKind.LEFTOVER if left else AbandonedKind.VOLUME,
        sandbox=SandboxId(sandbox[0]) if left and sandbox is not None else None,
        name=str(meta["name"]),
        identity=str(meta.get("uid", "")),
        size_bytes=int(parse_quantity(str(spec["capacity"]["storage"]))) if "capacity" in spec else None,
        storage=str(spec.get("storageClassName") or ""),
        said=AbandonedReason.RETAINED,
        removable=False,
    )


def _namespace(namespace: Json, *, empty: bool) -> Thing:
    meta = namespace["metadata"]
    client = (meta.get("annotations") or {}).get(CLIENT_ANNOTATION)
    size = 0 if empty else None
    return Thing(
        kind=AbandonedKind.NAMESPACE,
        name=str(meta["name"]),
        identity=str(meta.get("uid", "")),
        size_bytes=size,
        client=ClientId(client) if client else None,
        removable=empty,
    )


def _work(work: Json) -> Thing:
    meta = work["metadata"]
    return Thing(
        kind=AbandonedKind.WORK,
        name=f"{meta['namespace']}/{meta['name']}",
        identity=str(meta.get("uid", "")),
        said=AbandonedReason.EXPIRED,
    )
