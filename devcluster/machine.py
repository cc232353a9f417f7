"""What the machine must have: Linux, root, and programs from the distribution's packages."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from devcluster.trouble import ClusterError, say

NEEDS = {
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "docker-registry": "docker-registry",
    "iptables": "iptables",
    "ipset": "ipset",
    "nft": "nftables",
    "ip": "iproute2",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "openssl": "openssl",
}
"""Program or file, and Debian's package of it."""
BUILD_NEEDS = {
    "gcc": "gcc",
    "pkg-config": "pkg-config",
    "/usr/include/seccomp.h": "libseccomp-dev",
    "/usr/include/stdlib.h": "libc6-dev",
}
"""What runc is built with."""
ADMIN_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


def widen_path() -> None:
    """Find what administrators use, also in the shell of somebody who has no `sbin` on PATH."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:{ADMIN_PATH}"


def check_system() -> None:
    """Refuse a machine that cannot do it.

    Raises:
        ClusterError: It is not Linux on x86-64 or ARM, or we are not root.
    """
    if platform.system() != "Linux":
        raise ClusterError("the development cluster runs on Linux; elsewhere use kind and KUBECONFIG.")
    if os.geteuid() != 0:
        raise ClusterError("only root can start containers, bridges and mounts: `sudo make cluster-up`, or use kind.")


def install_packages(needs: dict[str, str]) -> None:
    """Install what is missing of the distribution's packages.

    Raises:
        ClusterError: Something is missing and cannot be installed; the text names it.
    """
    missing = _missing(needs)
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(f"missing, by their names in Debian: {' '.join(missing)}. Install them and try again.")
    say(f"installing {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, capture_output=True, check=False)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    done = subprocess.run(install, env=environment, capture_output=True, check=False)
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        raise ClusterError(f"apt-get could not install {' '.join(missing)}:\n{text}")
    if left := _missing(needs):
        raise ClusterError(f"still missing after apt-get: {' '.join(left)}")


def _missing(needs: dict[str, str]) -> list[str]:
    return sorted({package for need, package in needs.items() if not _is_there(need)})


def _is_there(need: str) -> bool:
    return Path(need).exists() if need.startswith("/") else shutil.which(need) is not None


def prepare_kernel() -> None:
    """Let the kernel forward packets, and let bridged ones pass the packet filter.

    Without the latter no NetworkPolicy holds between two pods of one node.

    Raises:
        ClusterError: The kernel has no br_netfilter.
    """
    bridged = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not bridged.exists() and shutil.which("modprobe"):
        for module in ("br_netfilter", "overlay", "nf_conntrack"):
            subprocess.run(["modprobe", module], capture_output=True, check=False)
    if not bridged.exists():
        raise ClusterError("the kernel has no br_netfilter: NetworkPolicies would not hold between pods of this node.")
    bridged.write_text("1")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
