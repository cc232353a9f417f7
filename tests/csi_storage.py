"""A storage of the development cluster that makes snapshots: the real sidecars and a driver, as processes of the node.

The driver is the one of `devcluster/csi`. Where `TEST_CSI_HOSTPATH` names a directory with `hostpathplugin` and
`csi-node-driver-registrar` (csi-driver-host-path and node-driver-registrar, built by hand), it is that one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from devcluster.places import NODE, NODE_STATE
from sandboxd.model.cluster import INSTANCE_LABEL
from tests.installation import ClusterInstallation
from tools.snapshot_definitions import KINDS

HOSTPATH: Final = os.environ.get("TEST_CSI_HOSTPATH", "")
KUBELET: Final = NODE_STATE / "kubelet"
SNAPSHOTS: Final = "snapshot.storage.k8s.io"
SOON: Final = ("--retry-interval-start=200ms", "--retry-interval-max=1s", "--kube-api-qps=100", "--kube-api-burst=200")
STOP_SECONDS: Final = 10


@dataclass(kw_only=True)
class CsiStorage:
    """The storage of one installation, with classes of its name."""

    installation: ClusterInstallation
    programs: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the driver."""
        return "hostpath.csi.k8s.io" if HOSTPATH else f"{self.installation.instance}.csi.sandboxd.dev"

    @property
    def root(self) -> Path:
        """Where it keeps volumes and snapshots."""
        return NODE_STATE / f"csi-{self.installation.instance}"

    @property
    def stored(self) -> set[str]:
        """Handles of the snapshots that it has."""
        if HOSTPATH:
            return {one.name.removesuffix(".snap") for one in self.root.glob("*.snap")}
        return {one.name for one in (self.root / "snapshots").glob("*")}

    @property
    def volumes(self) -> set[str]:
        """Handles of the volumes that it has."""
        if HOSTPATH:
            return {one.name for one in self.root.iterdir() if one.is_dir()}
        return {one.name for one in (self.root / "volumes").glob("*")}

    @contextmanager
    def running(self, definitions: Sequence[str]) -> Iterator[CsiStorage]:
        """Have it, and leave the cluster as it was found."""
        kubectl = self.installation.kubectl
        with known(self.installation, definitions):
            kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(self._objects()))
            try:
                self._start_all()
                yield self
            finally:
                mine = ("--all-namespaces", f"--selector={INSTANCE_LABEL}={self.installation.instance}")
                kubectl("delete", "volumesnapshots", *mine, "--timeout=30s")
                for name in reversed(self.processes):
                    self.stop(name)
                shutil.rmtree(KUBELET / "plugins" / self.name, ignore_errors=True)
                (KUBELET / "plugins_registry" / f"{self.name}-reg.sock").unlink(missing_ok=True)
                shutil.rmtree(self.root, ignore_errors=True)
                self._forget()
                for kind in ("storageclass", "volumesnapshotclass"):
                    kubectl("delete", kind, self.installation.instance, "--ignore-not-found")
                kubectl("delete", "csidriver", self.name, "--ignore-not-found")

    def start(self, name: str, *command: str) -> None:
        """Start one of its processes."""
        with (self.installation.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self, name: str) -> None:
        """End one of them."""
        process = self.processes[name]
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def start_controller(self) -> None:
        """What binds VolumeSnapshots to contents; there is one of it in a cluster."""
        kubeconfig = f"--kubeconfig={self.installation.cluster.kubeconfig}"
        self.start("snapshot-controller", str(self.programs / "snapshot-controller"), kubeconfig, *SOON)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """What is cut is not ready to use, until this is left."""
        place = self.root / "hold"
        place.touch()
        yield
        place.unlink()

    def trouble(self, text: str) -> None:
        """What the driver answers from now on, whatever is wanted; empty: it works."""
        place = self.root / "trouble"
        if text:
            place.write_text(text)
        else:
            place.unlink(missing_ok=True)

    def _start_all(self) -> None:
        socket = KUBELET / "plugins" / self.name / "csi.sock"
        socket.parent.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(parents=True, exist_ok=True)
        self._start_driver(socket)
        wait_until(socket.exists, within=20, what="the driver's socket")
        given = (f"--kubeconfig={self.installation.cluster.kubeconfig}", f"--csi-address={socket}", *SOON)
        for sidecar in ("csi-provisioner", "csi-snapshotter"):
            self.start(sidecar, str(self.programs / sidecar), *given)
        self.start_controller()
        wait_until(self._is_registered, within=60, what="the driver's registration at the kubelet")
        assert all(one.poll() is None for one in self.processes.values()), self.processes

    def _start_driver(self, socket: Path) -> None:
        if not HOSTPATH:
            places = (f"-node={NODE}", f"-root={self.root}", f"-kubelet={KUBELET}")
            self.start("driver", str(self.programs / "csi"), f"-name={self.name}", *places)
            return
        given = (f"--drivername={self.name}", f"--nodeid={NODE}", f"--statedir={self.root}", "--enable-topology=false")
        self.start("driver", f"{HOSTPATH}/hostpathplugin", f"--endpoint=unix://{socket}", *given)
        wait_until(socket.exists, within=20, what="the driver's socket")
        registry = f"--plugin-registration-path={KUBELET / 'plugins_registry'}"
        paths = (f"--csi-address={socket}", f"--kubelet-registration-path={socket}", registry)
        self.start("registrar", f"{HOSTPATH}/csi-node-driver-registrar", *paths)

    def _is_registered(self) -> bool:
        found = json.loads(self.installation.kubectl("get", "csinode", NODE, "-o", "json"))
        return self.name in {one["name"] for one in found["spec"].get("drivers") or ()}

    def _forget(self) -> None:
        """Objects of what the storage had: nobody who could is there any more to let go of them."""
        kubectl, free = self.installation.kubectl, '{"metadata":{"finalizers":null}}'
        for kind in ("volumesnapshotcontents", "pv"):
            found = json.loads(kubectl("get", kind, "-o", "json"))["items"]
            for one in found:
                if self.name in (one["spec"].get("driver"), one["spec"].get("csi", {}).get("driver")):
                    kubectl("delete", kind, one["metadata"]["name"], "--wait=false", check=False)
                    kubectl("patch", kind, one["metadata"]["name"], "--type=merge", f"-p={free}", check=False)

    def _objects(self) -> dict[str, object]:
        name = {"name": self.installation.instance}
        return {
            "apiVersion": "v1",
            "kind": "List",
            "items": [
                {
                    "apiVersion": "storage.k8s.io/v1",
                    "kind": "CSIDriver",
                    "metadata": {"name": self.name},
                    "spec": {"attachRequired": False, "podInfoOnMount": True, "fsGroupPolicy": "File"},
                },
                {
                    "apiVersion": "storage.k8s.io/v1",
                    "kind": "StorageClass",
                    "metadata": name,
                    "provisioner": self.name,
                    "volumeBindingMode": "WaitForFirstConsumer",
                },
                {
                    "apiVersion": f"{SNAPSHOTS}/v1",
                    "kind": "VolumeSnapshotClass",
                    "metadata": {**name, "annotations": {"snapshot.storage.kubernetes.io/is-default-class": "true"}},
                    "driver": self.name,
                    "deletionPolicy": "Delete",
                },
            ],
        }


@contextmanager
def known(installation: ClusterInstallation, definitions: Sequence[str]) -> Iterator[None]:
    """Let the cluster know VolumeSnapshots; leave it as it was found."""
    kubectl, names = installation.kubectl, [f"{kind}.{SNAPSHOTS}" for kind in KINDS]
    there = kubectl("get", "crd", "-o", "name")
    for one in definitions:
        kubectl("apply", "--server-side", "--force-conflicts", "-f", one)
    kubectl("wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{name}" for name in names))
    try:
        yield
    finally:
        if names[0] not in there:
            kubectl("delete", "crd", *names, "--wait=false")


def wait_until(check: Callable[[], bool], *, within: float, what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(0.1)
