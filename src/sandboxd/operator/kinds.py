"""The kinds of objects that the operator reads and writes, and where the API has them."""

from __future__ import annotations

import enum

from sandboxd.kubeapi.client import segment
from sandboxd.model.cluster import API_VERSION, POOLS, PROBES, SANDBOXES, TEMPLATES
from sandboxd.model.cluster_backup import BACKUPS

_OURS = f"/apis/{API_VERSION}"
_SNAPSHOTS = "/apis/snapshot.storage.k8s.io/v1"


class Kind(enum.Enum):
    """Each with the prefix of its API and its plural."""

    SANDBOX = (_OURS, SANDBOXES)
    TEMPLATE = (_OURS, TEMPLATES)
    POOL = (_OURS, POOLS)
    PROBE = (_OURS, PROBES)
    BACKUP = (_OURS, BACKUPS)
    STATEFUL_SET = ("/apis/apps/v1", "statefulsets")
    DAEMON_SET = ("/apis/apps/v1", "daemonsets")
    POD = ("/api/v1", "pods")
    SECRET = ("/api/v1", "secrets")
    CLAIM = ("/api/v1", "persistentvolumeclaims")
    VOLUME = ("/api/v1", "persistentvolumes")
    VOLUME_SNAPSHOT = (_SNAPSHOTS, "volumesnapshots")
    SNAPSHOT_CONTENT = (_SNAPSHOTS, "volumesnapshotcontents")
    NAMESPACE = ("/api/v1", "namespaces")
    QUOTA = ("/api/v1", "resourcequotas")
    LIMITS = ("/api/v1", "limitranges")
    POLICY = ("/apis/networking.k8s.io/v1", "networkpolicies")
    STORAGE_CLASS = ("/apis/storage.k8s.io/v1", "storageclasses")
    NODE = ("/api/v1", "nodes")
    EVENT = ("/api/v1", "events")
    LEASE = ("/apis/coordination.k8s.io/v1", "leases")

    def everywhere(self) -> str:
        """The collection over all namespaces."""
        prefix, plural = self.value
        return f"{prefix}/{plural}"

    def within(self, namespace: str) -> str:
        """The collection in one namespace; the only one for what has no namespace."""
        prefix, plural = self.value
        return f"{prefix}/namespaces/{segment(namespace)}/{plural}" if namespace else f"{prefix}/{plural}"

    def path(self, namespace: str, name: str) -> str:
        """One object."""
        return f"{self.within(namespace)}/{segment(name)}"
