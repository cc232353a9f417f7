"""Where the development cluster keeps its things, and the addresses it uses.

Everything lies below one directory of the cache, outside every checkout: one machine has one such cluster.
"""

import os
from dataclasses import dataclass
from pathlib import Path

NODE = "node1"
NODE_STATE = Path("/var/lib/sandboxd-devcluster")
"""What pods have mounted. Not below a home: root of a user namespace cannot pass a directory with mode 0700."""
NODE_RUN = Path("/run/sandboxd-devcluster")
"""containerd's sockets and root file systems; gone after a reboot, as it wants."""
VOLUMES = Path("/tmp/hostpath_pv")  # noqa: S108  not our choice
"""Where the controller manager's host-path provisioner makes volumes; it has no option for that."""
NODE_ADDRESS = "10.88.0.1"
"""The bridge's own address: the node, its DNS, and what pods see of the host."""
BRIDGE = "cni0"
POD_RANGE = "10.88.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
API_PORT = 6443
KUBELET_PORT = 10250
KUBELET_HEALTH_PORT = 10248
METRICS_PORT = 4443
REGISTRY_PORT = 5000
ETCD_PORTS = (2379, 2380)
REGISTRY = f"127.0.0.1:{REGISTRY_PORT}"
"""Push here; pods pull the same images as `localhost:5000/…`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The directories of one development cluster."""

    home: Path

    @classmethod
    def of_this_machine(cls) -> "Places":
        """Return them: below `SANDBOXD_CACHE_DIR`, else below `~/.cache/sandboxd`."""
        given = os.environ.get("SANDBOXD_CACHE_DIR")
        cache = Path(given) if given else Path.home() / ".cache" / "sandboxd"
        return cls(home=cache.absolute() / "devcluster")

    @property
    def bin(self) -> Path:
        """The programs: links into `builds`."""
        return self.home / "bin"

    @property
    def builds(self) -> Path:
        """What was built, a directory for each content hash; one that exists is whole."""
        return self.home / "builds"

    @property
    def etc(self) -> Path:
        """Configuration, kubeconfigs and keys."""
        return self.home / "etc"

    @property
    def pki(self) -> Path:
        """Keys and certificates of this cluster alone; made on its first start, on no other machine."""
        return self.etc / "pki"

    @property
    def data(self) -> Path:
        """What outlives a stop: etcd and the registry. Belongs to the keys in `etc`."""
        return self.home / "data"

    @property
    def socket(self) -> Path:
        """Where containerd listens."""
        return NODE_RUN / "containerd.sock"

    @property
    def cni_etc(self) -> Path:
        """Configuration of the pods' network."""
        return self.etc / "cni"

    @property
    def log(self) -> Path:
        """One log for each component."""
        return self.home / "log"

    @property
    def lock(self) -> Path:
        """Held by whoever starts, stops or heals."""
        return self.home / "lock"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's way in."""
        return self.etc / "admin.kubeconfig"
