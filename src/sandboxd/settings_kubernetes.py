"""Settings of the Kubernetes backend and of the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from sandboxd.settings_rules import Address

_QUANTITY: Final = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"


class KubernetesSettings(BaseSettings):
    """Where sandboxes are placed, and what the cluster is told. A part of `Settings`."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    backend: Literal["local", "kubernetes"] = "local"
    """Where sandboxes are placed: as processes of this machine, for development, or as pods of a cluster."""
    kubeconfig: Path | None = None
    """How the cluster is reached. If empty: the pod's own service account, else KUBECONFIG, else `~/.kube/config`."""
    kubernetes_template: str = Field(default="default", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """`SandboxTemplate` of new pods."""
    kubernetes_premium_gpus: int = Field(default=0, ge=0, le=16)
    """How many GPUs a sandbox of the tier premium has, of the resource that its template names (`gpuResource`). They
    come and go with the next start of a sandbox."""
    gemini_keys_secret: str = Field(default="", pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$")
    """Secret in `kubernetes_namespace` where `serve` keeps the clients' API keys; the gateway mounts it as its
    `gemini_keys_dir`. If empty, `serve` writes files into that directory."""
    image_pulls_secret: str = Field(default="", pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$")
    """Secret in `kubernetes_namespace` where `serve` keeps the accounts that pull clients' images from Harbor; the
    operator copies each into its client's namespace. None are made if empty, and pods pull with what their template
    names."""

    kubernetes_instance: str = Field(default="sandboxd", pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")
    """Name of this installation, on a label of everything it makes in a cluster. Several can share one cluster."""
    kubernetes_namespace: str = Field(default="sandboxd-system", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """sandboxd's own namespace: its parts, and the Lease of its operators."""
    kubernetes_namespace_prefix: str = Field(default="client-", pattern=r"^[a-z][-a-z0-9]{0,29}$")
    """A client's namespace is named by this and the client."""
    kubernetes_blocked_ranges: str = Field(default="", pattern=r"^[0-9a-fA-F.:/, ]*$")
    """Address ranges with commas between them that sandboxes must not reach, beside the private ones: the public
    addresses of the cluster's machines and of its API server."""
    kubernetes_allowed_addresses: str = Field(default="", pattern=r"^([0-9a-fA-F.:/]+/[0-9]+:[0-9]+[, ]*)*$")
    """Addresses `range:port` with commas between them that sandboxes may reach although they are private, for example
    a DNS server that is no pod: `10.0.0.10/32:53`."""
    kubernetes_prepull: bool = True
    """Keep the images of this installation's `SandboxTemplate`s on every node that fits them, by a DaemonSet of the
    operator for each."""
    kubernetes_backup_image: str = Field(default="", pattern=r"^\S*$", max_length=512)
    """Image of the operator's pods that back up, and of those that flush a volume before its snapshot: the server's of
    this very version, best by digest."""
    kubernetes_backup_addresses: str = Field(default="", pattern=r"^([0-9a-fA-F.:/]+/[0-9]+:[0-9]+[, ]*)*$")
    """Addresses `range:port` with commas between them at which the storage of backups is: the operator's pods that back
    up reach nothing else, but DNS where the storage has a name."""
    kubernetes_backup_cpu: str = Field(default="1", pattern=_QUANTITY)
    """Processor time of each pod that backs up, at most."""
    kubernetes_backup_memory: str = Field(default="1G", pattern=_QUANTITY)
    """Memory of each pod that backs up, at most. restic holds the index of a repository in it, which grows with
    what is kept; a pod that had too little says `OutOfMemory`."""
    kubernetes_backup_cpu_request: str = Field(default="50m", pattern=_QUANTITY)
    """Processor time that each pod that backs up asks for."""
    kubernetes_backup_memory_request: str = Field(default="128M", pattern=_QUANTITY)
    """Memory that each pod that backs up asks for."""
    kubernetes_snapshots: bool = False
    """Work on CSI VolumeSnapshots also where `SANDBOXD_BACKUPS_METHOD` is `files`: backups by snapshots, from before it
    was, can then be restored and deleted."""
    kubernetes_snapshot_class: str = Field(default="", pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$")
    """VolumeSnapshotClass of backups; if empty the default one of the volumes' driver."""
    operator_web_listen: Address = "127.0.0.1:8084"
    """Where the operator's /metrics, /healthz and /readyz are. On other addresses than loopback with TLS."""
    operator_lease_seconds: float = Field(default=10, ge=1, le=300)
    """An operator without a sign of life for so long is replaced by another one. One that ends by itself at once."""
