"""What a killed run leaves in the kernel: network namespaces, veths, packet filter rules, addresses, mounts.

Swept only while no kubelet runs, because a pod that is coming about looks the same.
"""

import contextlib
import json
import re
import shutil
import subprocess
from pathlib import Path

from devcluster.components import NETWORK
from devcluster.places import BRIDGE, NODE_ADDRESS, NODE_RUN, NODE_STATE, POD_RANGE, VOLUMES, Places
from devcluster.processes import SHIM, Found, ours, running, stop
from devcluster.trouble import say

NAMESPACES = Path("/run/netns")
ADDRESSES = Path("/var/lib/cni/networks") / NETWORK


def make_bridge() -> None:
    """Make the pods' bridge, or put right what a killed start left of it."""
    if _quiet("ip", "link", "show", BRIDGE) is None:
        _quiet("ip", "link", "add", BRIDGE, "type", "bridge")
    length = POD_RANGE.rpartition("/")[2]
    if f" {NODE_ADDRESS}/{length} " not in (_quiet("ip", "-4", "addr", "show", "dev", BRIDGE) or ""):
        _quiet("ip", "addr", "add", f"{NODE_ADDRESS}/{length}", "dev", BRIDGE)
    _quiet("ip", "link", "set", BRIDGE, "up")


def sweep_pods(places: Places) -> None:
    """Remove what belongs to pods that containerd does not know. It must answer, and the kubelet must be off."""
    known = _known(places)
    held = {path.name for path in (NODE_RUN / "containerd").glob("io.containerd.runtime.v2.task/k8s.io/*")}
    if dead := [found for found in shims(places) if _argument(found, "-id") not in known & held]:
        say(f"ending {len(dead)} shims of pods that containerd does not know")
        stop(dead, gently=False)
    if orphans := [found for found in contained() if not _descends(found.pid, {one.pid for one in shims(places)})]:
        say(f"ending {len(orphans)} processes of pods that nothing holds any more")
        stop(orphans, gently=False)
    used = {_namespace(places, container) for container in known}
    namespaces = [path for path in NAMESPACES.glob("cni-*") if path.name not in used and _is_ours(path)]
    for path in namespaces:
        _quiet("ip", "netns", "delete", path.name)
    lost = [path for path in ADDRESSES.glob("*.*.*.*") if not known.issuperset(path.read_text().split()[:1] or [""])]
    for path in lost:
        path.unlink(missing_ok=True)
    rules = remove_rules(keep=known)
    if namespaces or lost or rules:
        say(f"removed what lost pods left: {len(namespaces)} network namespaces, {len(lost)} addresses, {rules} rules")


def shims(places: Places) -> list[Found]:
    """The processes that hold our containers."""
    return [found for found in ours(places) if found.program == SHIM]


def contained() -> list[Found]:
    """The processes inside our pods: their root is a file system that our containerd made."""
    return [found for found in running() if _is_contained(found.pid)]


def _is_contained(pid: int) -> bool:
    try:
        mounts = Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:
        return False
    return any(line.split()[4] == "/" and f"dir={NODE_STATE}/" in line for line in mounts.splitlines())


def _descends(pid: int, ancestors: set[int]) -> bool:
    while pid > 1:
        if pid in ancestors:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def end_pods(places: Places) -> None:
    """End every process of a pod, and those that hold them."""
    holders = shims(places)
    stop(contained(), gently=False)
    stop(holders, gently=False)
    stop(contained(), gently=False)


def _argument(found: Found, name: str) -> str:
    at = found.command.index(name) if name in found.command else -1
    return found.command[at + 1] if 0 <= at < len(found.command) - 1 else ""


def _ctr(places: Places, *arguments: str) -> str:
    return _quiet(str(places.bin / "ctr"), "--address", str(places.socket), "-n", "k8s.io", *arguments) or ""


def _known(places: Places) -> set[str]:
    return set(_ctr(places, "containers", "list", "-q").split())


def _namespace(places: Places, container: str) -> str:
    try:
        told = json.loads(_ctr(places, "containers", "info", container))
        namespaces = told["Spec"]["linux"]["namespaces"]
    except (ValueError, KeyError, TypeError):
        return ""
    return next((Path(one.get("path", "")).name for one in namespaces if one["type"] == "network"), "")


def _is_ours(namespace: Path) -> bool:
    """Tell whether a network namespace holds a pod's interface of our range, or nothing any more."""
    told = _quiet("ip", "netns", "exec", namespace.name, "ip", "-4", "-o", "addr", "show", "scope", "global")
    return not (told or "").strip() or f" {POD_RANGE.rpartition('.0.0/')[0]}." in (told or "")


def remove_rules(*, keep: set[str]) -> int:
    """Remove the address translation of pods whose container is not among these; tells how many rules went."""
    saved = (_quiet("iptables-save", "-t", "nat") or "").splitlines()
    marked = re.compile(rf'^-A (\S+) .*name: \\?"{NETWORK}\\?" id: \\?"([0-9a-f]+)\\?"')
    dead: list[str] = []
    chains: set[str] = set()
    for line in saved:
        found = marked.match(line)
        if found is None or found[2] in keep:
            continue
        dead.append(line)
        target = re.search(r"-j (CNI-\S+)", line)
        chains |= {
            name for name in (found[1], target[1] if target else "") if name.startswith("CNI-") and len(name) > 20
        }
    deletions = [line.replace("-A ", "-D ", 1) for line in dead]
    for chain in sorted(chains):
        deletions += [f"-F {chain}", f"-X {chain}"]
    if deletions:
        text = "\n".join(["*nat", *deletions, "COMMIT", ""])
        subprocess.run(["iptables-restore", "--noflush"], input=text.encode(), capture_output=True, check=False)
    return len(dead)


def remove_everything(places: Places) -> None:
    """Leave no process, mount, interface or rule of the cluster. What is kept on disk stays."""
    end_pods(places)
    unmount()
    for path in NAMESPACES.glob("cni-*"):
        if _is_ours(path):
            _quiet("ip", "netns", "delete", path.name)
    _quiet("ip", "link", "delete", BRIDGE)
    shutil.rmtree(ADDRESSES, ignore_errors=True)
    remove_rules(keep=set())
    remove_policies()
    for family in ("ip", "ip6"):
        _quiet("nft", "delete", "table", family, "kube-proxy")
    shutil.rmtree(NODE_RUN, ignore_errors=True)
    for group in Path("/sys/fs/cgroup").glob("**/kubepods"):
        for folder in sorted((path for path in group.glob("**/") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()


def remove_policies() -> None:
    """Remove the chains and sets of the NetworkPolicy enforcer."""
    for suffix in ("", "6"):
        saved = (_quiet(f"ip{suffix}tables-save", "-t", "filter") or "").splitlines()
        ours_ = ("KUBE-ROUTER", "KUBE-POD-FW", "KUBE-NWPLCY")
        chains = [line[1:].split()[0] for line in saved if line.startswith(":") and line[1:].startswith(ours_)]
        jumps = [
            line.replace("-A ", "-D ", 1)
            for line in saved
            if line.startswith("-A ") and not line[3:].startswith(ours_) and any(f"-j {name}" in line for name in ours_)
        ]
        text = ["*filter", *jumps, *(f"-F {one}" for one in chains), *(f"-X {one}" for one in chains), "COMMIT", ""]
        if chains or jumps:
            restore = [f"ip{suffix}tables-restore", "--noflush"]
            subprocess.run(restore, input="\n".join(text).encode(), capture_output=True, check=False)
    names = (_quiet("ipset", "list", "-n") or "").split()
    for name in names:
        if re.match(r"(inet6:)?(KUBE|kube-router)", name):
            _quiet("ipset", "destroy", name)


def unmount() -> None:
    """Unmount everything below the node's directories, the innermost first."""
    roots = (f"{NODE_STATE}/", f"{NODE_RUN}/")
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        path = line.split()[4].encode().decode("unicode_escape")
        if path.startswith(roots):
            _quiet("umount", "-l", path)


def purge(places: Places) -> None:
    """Remove all state but what was built: the next start is the first one."""
    for path in (NODE_STATE, places.data, places.etc, places.log, VOLUMES):
        shutil.rmtree(path, ignore_errors=True)


def _quiet(*command: str) -> str | None:
    """Run a command; its output, or None where it failed."""
    done = subprocess.run([*command], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
