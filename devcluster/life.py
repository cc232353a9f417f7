"""Starting, healing and stopping the cluster. Starting one that runs repairs what is wrong and leaves the rest."""

import fcntl
import json
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster import addons
from devcluster.builds import build_all
from devcluster.components import Component, components
from devcluster.leftovers import end_pods, make_bridge, purge, remove_everything, sweep_pods, unmount
from devcluster.machine import NEEDS, check_system, install_packages, prepare_kernel, widen_path
from devcluster.pki import ensure_pki
from devcluster.places import API_PORT, ETCD_PORTS, KUBELET_HEALTH_PORT, NODE, NODE_RUN, NODE_STATE, REGISTRY, Places
from devcluster.processes import SHIM, Found, listener, name_of, ours, start, stop
from devcluster.trouble import ClusterError, say

UP_SECONDS = 90.0


def up(places: Places) -> None:
    """Build what is missing, put right what is wrong, start what does not run, and wait until pods can start.

    Raises:
        ClusterError: It cannot be; the text says why and what to do.
    """
    began = time.monotonic()
    widen_path()
    check_system()
    install_packages(NEEDS)
    places.home.mkdir(parents=True, exist_ok=True)
    with _alone(places):
        build_all(places)
        prepare_kernel()
        for folder in (places.etc, places.data, places.log, NODE_STATE, NODE_RUN):
            folder.mkdir(parents=True, exist_ok=True)
        if ensure_pki(places):
            _forget_former_life(places)
        make_bridge()
        changed = _start_all(places)
        addons.apply(places)
        _await("the DNS", lambda: _dns_is_ready(places), places.log)
        _await("the API of metrics", lambda: _metrics_are_served(places), places.log)
    say(f"{'up' if changed else 'was up already'}; {time.monotonic() - began:.0f} s")
    say(f"export KUBECONFIG={places.kubeconfig} PATH={places.bin}:$PATH")


def down(places: Places, *, everything: bool = False) -> None:
    """End every process, pod, mount, interface and rule; the state stays unless everything shall go."""
    widen_path()
    check_system()
    places.home.mkdir(parents=True, exist_ok=True)
    with _alone(places):
        living = {name_of(found): found for found in ours(places)}
        order = ["metrics-server", "kubelet", "netpol", "kube-proxy", "kube-scheduler", "kube-controller-manager"]
        for name in [*order, "kube-apiserver", "registry", "containerd", "etcd"]:
            if name in living:
                stop([living[name]])
        stop([found for found in ours(places) if found.program != SHIM])
        remove_everything(places)
        if everything:
            purge(places)
    say("down" + (", and nothing of it is left but what was built" if everything else "; its state is kept"))


def status(places: Places) -> bool:
    """Print what runs; tells whether all of it does."""
    living = {name_of(found): found for found in ours(places)}
    names = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "registry", "containerd", "kubelet"]
    names += ["kube-proxy", "netpol", "metrics-server"]
    for name in names:
        print(f"{name:24} {f'pid {living[name].pid}' if name in living else 'does not run'}")
    ready = _node_is_ready(places)
    print(f"{'node':24} {'Ready' if ready else 'not ready'}")
    print(f"export KUBECONFIG={places.kubeconfig}")
    return ready and all(name in living for name in names)


@contextmanager
def _alone(places: Places) -> Iterator[None]:
    """Hold the lock: two that start at once would start everything twice. A killed holder lets go of it."""
    with places.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run starts or stops it; waiting for that")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start_all(places: Places) -> bool:
    wanted = components(places)
    running: dict[str, list[Found]] = {}
    for found in ours(places):
        running.setdefault(name_of(found), []).append(found)
    good = {one.name for one in wanted if [found.digest for found in running.get(one.name, [])] == [one.digest]}
    if "containerd" not in good:
        good.discard("kubelet")  # it is off while lost pods are swept
    wrong = [found for name, many in running.items() if name and name not in good for found in many]
    if wrong:
        say(f"ending what is not as it should be: {', '.join(sorted({name_of(found) for found in wrong}))}")
        stop(wrong)
    for one in wanted:
        if one.name not in good:
            _check_ports(one)
    for one in wanted:
        if one.name in good:
            continue
        if one.name == "kubelet":
            sweep_pods(places)
        if one.name == "netpol":
            _await("the node", lambda: _node_is_ready(places), places.log)
        _start(one, places)
        _after(one, places)
    _await("the node", lambda: _node_is_ready(places), places.log)
    _check_lives(wanted, places)
    return len(good) < len(wanted)


def _start(one: Component, places: Places) -> None:
    path = f"{places.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    start(one.name, one.command, digest=one.digest, log=places.log / f"{one.name}.log", path=path)


def _after(one: Component, places: Places) -> None:
    """Wait for what others need at once."""
    match one.name:
        case "etcd":
            _await_etcd(one, places)
        case "kube-apiserver":
            _await("the API server", lambda: _api_is_ready(places), places.log)
        case "registry":
            _await("the registry", lambda: _answers(f"http://{REGISTRY}/v2/"), places.log)
            addons.push_images(places)
        case "containerd":
            _await("containerd", lambda: _containerd_answers(places), places.log)
        case "kubelet":
            _await("the kubelet", lambda: _answers(f"http://127.0.0.1:{KUBELET_HEALTH_PORT}/healthz"), places.log)
        case _:
            return


def _await_etcd(one: Component, places: Places) -> None:
    """Wait for etcd; what it cannot read is set aside, because a development cluster can begin anew."""
    url = f"http://127.0.0.1:{ETCD_PORTS[0]}/health"
    try:
        _await("etcd", lambda: _answers(url), places.log, within=20)
    except ClusterError:
        stop([found for found in ours(places) if name_of(found) == "etcd"])
        aside = places.data / f"etcd.unreadable.{int(time.time())}"
        (places.data / "etcd").rename(aside)
        say(f"etcd could not read its state, which is now {aside}; starting with an empty one")
        _start(one, places)
        _await("etcd", lambda: _answers(url), places.log)


def _forget_former_life(places: Places) -> None:
    """New keys are another cluster: what the former one's node held means nothing to it."""
    living = ours(places)
    stop([found for found in living if found.program != SHIM])
    end_pods(places)
    unmount()
    for path in (places.data / "etcd", NODE_STATE / "kubelet"):
        shutil.rmtree(path, ignore_errors=True)


def _check_ports(one: Component) -> None:
    for port in one.ports:
        if (owner := listener(port)) is not None:
            pid, command = owner
            who = f"process {pid} ({command[:120]})" if pid else "a process that cannot be seen from here"
            raise ClusterError(f"port {port}, which {one.name} needs, is taken by {who}. End it and try again.")


def _check_lives(wanted: list[Component], places: Places) -> None:
    living = {name_of(found) for found in ours(places)}
    if dead := [one.name for one in wanted if one.name not in living]:
        raise ClusterError(f"{', '.join(dead)} ended again; see {places.log}/{dead[0]}.log")


def _await(what: str, check: Callable[[], bool], log: Path, *, within: float = UP_SECONDS) -> None:
    deadline = time.monotonic() + within
    while not check():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not come up within {within:.0f} s; see {log}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  our own loopback
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _api(places: Places, path: str) -> bytes | None:
    try:
        context = ssl.create_default_context(cafile=str(places.pki / "ca.crt"))
        context.load_cert_chain(places.pki / "admin.crt", places.pki / "admin.key")
        url = f"https://127.0.0.1:{API_PORT}{path}"
        with urllib.request.urlopen(url, timeout=3, context=context) as answer:
            return bytes(answer.read())
    except (OSError, urllib.error.URLError):
        return None


def _api_is_ready(places: Places) -> bool:
    return _api(places, "/readyz") == b"ok"


def _node_is_ready(places: Places) -> bool:
    told = _api(places, f"/api/v1/nodes/{NODE}")
    conditions = json.loads(told)["status"].get("conditions", []) if told else []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _dns_is_ready(places: Places) -> bool:
    told = _api(places, f"/apis/apps/v1/namespaces/{addons.SYSTEM}/deployments/coredns")
    return bool(told and json.loads(told)["status"].get("readyReplicas"))


def _metrics_are_served(places: Places) -> bool:
    """Tell whether the API is there; what pods use is known a quarter of a minute later."""
    told = _api(places, f"/apis/apiregistration.k8s.io/v1/apiservices/{addons.METRICS_API}")
    conditions = json.loads(told)["status"].get("conditions", []) if told else []
    return any(one["type"] == "Available" and one["status"] == "True" for one in conditions)


def _containerd_answers(places: Places) -> bool:
    command = [str(places.bin / "ctr"), "--address", str(places.socket), "--connect-timeout", "1s", "version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
