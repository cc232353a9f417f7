"""The cluster that tests may use, when one is up: `make cluster-up`'s, or the one that KUBECONFIG names.

Fixtures for every directory: `cluster` skips where there is none and says how to get one; `instance` is an installation
of one test alone, whose objects are gone afterwards.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster.places import REGISTRY, Places
from sandboxd.model.cluster import INSTANCE_LABEL

HOW = "no cluster is up: `make cluster-up` starts one here (docs/devcluster.md), or let KUBECONFIG name one"
PROBE_SECONDS = 5
CRDS = Path(__file__).resolve().parents[1] / "helm" / "sandboxd" / "crds"
OWN_KUBECONFIG = os.environ.get("KUBECONFIG", "")
"""As the person who runs the tests gave it."""
OWN_REGISTRY = os.environ.get("TEST_REGISTRY", "")
"""Of a cluster of one's own: `127.0.0.1:PORT`, whose images its nodes pull as `localhost:PORT/…`, as with kind's."""
NO_REGISTRY = "only the development cluster has a registry of its own: TEST_REGISTRY names yours (docs/devcluster.md)"

Json = dict[str, Any]


class KubectlError(AssertionError):
    """kubectl failed; the text is what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A real cluster with an API server that answers."""

    kubeconfig: Path
    kubectl_binary: str
    places: Places | None
    """Where it keeps its things, when it is the development cluster; None for anybody else's."""

    @property
    def registry(self) -> str:
        """Where images are pushed; a test that asks is skipped where there is none."""
        if not OWN_REGISTRY and self.places is None:
            pytest.skip(NO_REGISTRY)
        return OWN_REGISTRY or REGISTRY

    async def kubectl(self, *arguments: str, stdin: str | bytes = b"", within: float = 60) -> str:
        """Run kubectl and return what it printed.

        Raises:
            KubectlError: It failed, or took too long.
        """
        process = await asyncio.create_subprocess_exec(
            self.kubectl_binary,
            f"--kubeconfig={self.kubeconfig}",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(within):
                out, err = await process.communicate(stdin.encode() if isinstance(stdin, str) else stdin)
        except TimeoutError:
            raise KubectlError(f"kubectl {' '.join(arguments)}: not within {within:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {err.decode(errors='replace').strip()}")
        return out.decode(errors="replace")

    async def get(self, *arguments: str) -> Json:
        """Return `kubectl get …` as JSON."""
        found: Json = json.loads(await self.kubectl("get", *arguments, "-o", "json"))
        return found

    async def apply(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Make these objects, or make them so."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        await self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(items))

    async def run_in(self, namespace: str, pod: str, *command: str, within: float = 60) -> str:
        """Run a command in the first container of a pod and return its output."""
        return await self.kubectl("exec", "-n", namespace, pod, "--", *command, within=within)

    async def clean(self, instance: str) -> None:
        """Remove everything that an installation made. Claims too: they are a test's."""
        label = f"--selector={INSTANCE_LABEL}={instance}"
        for kind in ("sandboxes", "sandboxpools", "sandboxprobes", "sandboxbackups"):
            try:
                found = await self.get(f"{kind}.sandboxd.dev", "-A", label)
            except KubectlError:
                continue  # the resources are not known to this cluster
            for item in found["items"]:
                place = (f"{kind}.sandboxd.dev", item["metadata"]["name"], "-n", item["metadata"]["namespace"])
                with suppress(KubectlError):  # it has gone meanwhile
                    await self.kubectl("patch", *place, "--type=merge", '-p={"metadata":{"finalizers":null}}')
        await self.kubectl("delete", "namespaces", label, "--ignore-not-found", "--wait=false")
        for kind in ("sandboxtemplates.sandboxd.dev", "clusterrolebindings", "clusterroles", "priorityclasses"):
            try:
                await self.kubectl("delete", kind, label, "--ignore-not-found", "--wait=false")
            except KubectlError:
                continue


def find_cluster() -> Cluster | None:
    """Return the cluster to use, or None when none answers."""
    places = Places.of_this_machine()
    kubeconfig = Path(OWN_KUBECONFIG) if OWN_KUBECONFIG else places.kubeconfig
    kubectl = shutil.which("kubectl", path=f"{places.bin}{os.pathsep}{os.environ.get('PATH', '')}")
    if kubectl is None or not kubeconfig.is_file():
        return None
    probe = [kubectl, f"--kubeconfig={kubeconfig}", f"--request-timeout={PROBE_SECONDS}s", "get", "--raw", "/readyz"]
    if subprocess.run(probe, capture_output=True, check=False, timeout=60).returncode != 0:
        return None
    ours = kubeconfig.resolve() == places.kubeconfig.resolve()
    return Cluster(kubeconfig=kubeconfig, kubectl_binary=kubectl, places=places if ours else None)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """A cluster that is up. In CI there must be one."""
    found = find_cluster()
    if found is None:
        if "CI" in os.environ:
            pytest.fail(HOW)
        pytest.skip(HOW)
    define_resources(found)
    return found


def define_resources(cluster: Cluster) -> None:
    """Let the cluster know the resources as this checkout defines them; a cluster that has just come up knows none."""
    apply = [cluster.kubectl_binary, f"--kubeconfig={cluster.kubeconfig}", "apply", "--server-side"]
    made = [*apply, "--force-conflicts", "-f", str(CRDS)]
    done = subprocess.run(made, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


@contextmanager
def _the_nodes(how: int) -> Iterator[None]:
    """Hold the lock on the nodes' room, among all runs of this machine; who waits for all of it is not overtaken."""
    places = [Path(tempfile.gettempdir(), f"sandboxd-tests-{os.getuid()}.{name}") for name in ("gate", "nodes")]
    with places[0].open("w") as gate, places[1].open("w") as nodes:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(nodes, how)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@pytest.fixture(autouse=True)
def _a_share_of_the_nodes(request: pytest.FixtureRequest) -> Iterator[None]:
    """CI has two runs on one cluster: none of its tests runs beside one that takes the whole room."""
    if "cluster" not in request.fixturenames:
        yield
        return
    with _the_nodes(fcntl.LOCK_EX if "whole_nodes" in request.fixturenames else fcntl.LOCK_SH):
        yield


@pytest.fixture
def whole_nodes() -> None:
    """For a test that fills the nodes: no other test of the cluster runs beside it."""


@pytest.fixture
async def instance(cluster: Cluster) -> AsyncIterator[str]:
    """Name of an installation of this test alone."""
    name = f"t-{secrets.token_hex(4)}"
    yield name
    await cluster.clean(name)
