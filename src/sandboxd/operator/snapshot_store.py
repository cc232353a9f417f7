"""Snapshots, their contents, claims and volumes as they are just now, and what is written to them.

None of this is mirrored: a cluster may not know snapshots at all, and what is deleted for good is looked for afresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from sandboxd.kubeapi.errors import KubeConflictError, KubeNotFoundError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.model.backup import Volume
from sandboxd.model.cluster import INSTANCE_LABEL, OPERATOR_MANAGER
from sandboxd.operator.kinds import Kind
from sandboxd.operator.leader import Leadership
from sandboxd.operator.observed import is_ours
from sandboxd.operator.snapshot_shape import LEFT_OVER, RESTORE, SET_LABEL, SNAPSHOT_API, VOLUME_LABEL
from sandboxd.operator.writing import TIMEOUT

PAGE: Final = "500"
MISSING: Final = (
    f"The cluster does not know {SNAPSHOT_API}: install the VolumeSnapshot definitions, the snapshot controller and a "
    "CSI driver that makes snapshots (kubernetes-csi/external-snapshotter), or back up with SANDBOXD_BACKUPS_METHOD="
    "files."
)


class SnapshotsMissingError(Exception):
    """The cluster knows no VolumeSnapshots."""


class ForeignObjectError(Exception):
    """Somebody else's object has a name that is needed."""


class SnapshotStore:
    """Reads and writes as long as this operator leads."""

    def __init__(self, api: KubeApi, *, leadership: Leadership, instance: str) -> None:
        self._api = api
        self._leadership = leadership
        self._instance = instance

    async def snapshots(self, namespace: str, *, backup: str = "") -> Sequence[Json]:
        """Ours of a client, or those of one of its sets.

        Raises:
            SnapshotsMissingError: The cluster knows none.
        """
        selector = f"{INSTANCE_LABEL}={self._instance}" + (f",{SET_LABEL}={backup}" if backup else "")
        found = await self._list(Kind.VOLUME_SNAPSHOT.within(namespace), selector)
        return [one for one in found if SET_LABEL in one["metadata"]["labels"]]

    async def contents(self, namespace: str) -> Sequence[Json]:
        """All contents that belong to snapshots of a namespace, also to those that are gone.

        Raises:
            SnapshotsMissingError: The cluster knows none.
        """
        found = await self._list(Kind.SNAPSHOT_CONTENT.everywhere(), "")
        return [one for one in found if one["spec"].get("volumeSnapshotRef", {}).get("namespace") == namespace]

    async def volumes(self, work: str) -> Sequence[Json]:
        """Volumes that a restore has taken out of the way."""
        return await self._list(Kind.VOLUME.everywhere(), f"{RESTORE}={work}")

    async def left_over(self, namespace: str) -> Sequence[Json]:
        """Volumes of a namespace that no restore could put back."""
        found = await self._list(Kind.VOLUME.everywhere(), LEFT_OVER)
        return [one for one in found if one["spec"]["claimRef"]["namespace"] == namespace]

    async def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """One object, or None."""
        try:
            return await self._api.get(kind.path(namespace, name), timeout=TIMEOUT)
        except KubeNotFoundError:
            return None

    async def create(self, kind: Kind, namespace: str, body: Json) -> None:
        """Make it; one of ours that is there is success.

        Raises:
            ForeignObjectError: One of somebody else is there.
        """
        self._leadership.check()
        try:
            await self._api.create(kind.within(namespace), body, field_manager=OPERATOR_MANAGER, timeout=TIMEOUT)
        except KubeConflictError as error:
            if error.reason != "AlreadyExists":
                raise
            found = await self.get(kind, namespace, body["metadata"]["name"])
            if found is not None and not is_ours(found, instance=self._instance):
                text = f"{kind.value[1]}/{body['metadata']['name']} belongs to somebody else; it is left alone."
                raise ForeignObjectError(text) from error

    async def patch(self, kind: Kind, found: Json, body: Json) -> None:
        """Merge into this very version of an object."""
        self._leadership.check()
        metadata = found["metadata"]
        path = kind.path(metadata.get("namespace", ""), metadata["name"])
        versioned = {
            **body,
            "metadata": {**body.get("metadata", {}), "resourceVersion": metadata["resourceVersion"]},
        }
        await self._api.patch(path, versioned, field_manager=OPERATOR_MANAGER, timeout=TIMEOUT)

    async def delete(self, kind: Kind, found: Json) -> None:
        """Delete this very object; absent is success."""
        self._leadership.check()
        metadata = found["metadata"]
        path = kind.path(metadata.get("namespace", ""), metadata["name"])
        with suppress(KubeNotFoundError):
            await self._api.delete(path, uid=metadata["uid"], propagation="Background", timeout=TIMEOUT)

    async def warning(self, namespace: str, claim: str) -> str:
        """What was said last of a claim that does not come about; empty where nothing was."""
        fields = f"involvedObject.kind=PersistentVolumeClaim,involvedObject.name={claim},type=Warning"
        query = {"fieldSelector": fields, "limit": PAGE}
        found = (await self._api.get(Kind.EVENT.within(namespace), query=query, timeout=TIMEOUT)).get("items") or ()
        said = sorted(found, key=lambda one: one.get("lastTimestamp") or one.get("eventTime") or "")
        return str(said[-1].get("message", "")) if said else ""

    async def _list(self, collection: str, selector: str) -> Sequence[Json]:
        found: list[Json] = []
        query: dict[str, str] = {"limit": PAGE, **({"labelSelector": selector} if selector else {})}
        while True:
            try:
                page = await self._api.get(collection, query=query, timeout=TIMEOUT)
            except KubeNotFoundError as error:
                raise SnapshotsMissingError(MISSING) from error
            found += page.get("items") or ()
            if not (more := (page.get("metadata") or {}).get("continue")):
                return found
            query["continue"] = more


def by_volume(snapshots: Sequence[Json]) -> Mapping[Volume, Json]:
    """Snapshots of one set by their volumes."""
    return {Volume(one["metadata"]["labels"][VOLUME_LABEL]): one for one in snapshots}
