"""`python -m tests.bench.cluster`: cold create to the first command's end, starts and wakes, beside a bare StatefulSet.

Both in one run, with the same images, one at a time and ten at once. The floor is a StatefulSet of one whose process
listens as soon as it can: without volumes, and with the two claims and the image volume that a sandbox has. Its time
goes from just before the request until the process inside takes a connection.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.kubeapi.client import KubeClient
from sandboxd.kubeapi.errors import KubeNotFoundError
from sandboxd.kubeapi.reflector import Reflector
from sandboxd.manager.agents import visit
from sandboxd.manager.backend_port import SandboxSpec
from sandboxd.model.cluster import INSTANCE_LABEL
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, make_id
from sandboxd.model.processes import ProcessId, ProcessSpec
from sandboxd.model.sandbox import TIER_RESOURCES, AgentEndpoint, Tier
from sandboxd.operator.pod_shape import agent_python
from tests.bench.figures import percentile
from tests.installation import ClusterInstallation, built_images
from tests.kube import define_resources, find_cluster

TIMEOUT = timedelta(seconds=120)
PORT = 7443
OVERCOMMIT = {"cpu": "0.02", "memory": "0.1"}
"""Of a basic sandbox's processor and 2 GB: forty have room on two processors."""
LISTEN = (
    "import socket\ns=socket.create_server(('0.0.0.0',7443),backlog=64)\nwhile True:\n c,_=s.accept()\n c.close()\n"
)
_numbers = count(1)
Json = dict[str, Any]


class Bench:
    """One installation, and what is timed on it."""

    def __init__(self, installation: ClusterInstallation, api: KubeClient) -> None:
        self.installation = installation
        self.api = api
        self.backend, self.connector = installation.backend(api)
        self.pods = Reflector(api, "/api/v1/pods", label_selector="bench=bare")
        self.namespace = f"{installation.instance}-system"

    async def bare(self, *, volumes: bool) -> float:
        """Create a StatefulSet and wait until the process inside listens."""
        name = f"bare-{next(_numbers)}"
        body = self._stateful_set(name, volumes=volumes)
        began = time.monotonic()
        await self.api.create(f"/apis/apps/v1/namespaces/{self.namespace}/statefulsets", body)
        await self._until_listening(name)
        return time.monotonic() - began

    async def bare_again(self, name: str) -> float:
        """Scale a StatefulSet from 0 to 1 and wait until the process inside listens."""
        began = time.monotonic()
        await self._scale(name, 1)
        await self._until_listening(name)
        return time.monotonic() - began

    async def stop_bare(self, name: str) -> None:
        """Scale it to 0, and wait until its pod is gone."""
        await self._scale(name, 0)
        await self._until(name, lambda pod: pod is None)

    async def create(self) -> tuple[float, SandboxSpec, IncarnationId]:
        """Create a sandbox and run a first command in it."""
        spec, incarnation = a_spec(), an_incarnation()
        seconds = await self.start(spec, incarnation)
        return seconds, spec, incarnation

    async def start(self, spec: SandboxSpec, incarnation: IncarnationId) -> float:
        """Start an incarnation and run a first command in it."""
        began = time.monotonic()
        endpoint = await self.backend.start(spec, incarnation, timeout=TIMEOUT)
        await first_command(self.connector, endpoint)
        return time.monotonic() - began

    async def _scale(self, name: str, replicas: int) -> None:
        path = f"/apis/apps/v1/namespaces/{self.namespace}/statefulsets/{name}"
        await self.api.patch(path, {"spec": {"replicas": replicas}})

    async def _until_listening(self, name: str) -> None:
        address = await self._until(name, lambda pod: (pod or {}).get("status", {}).get("podIP"))
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection(address, PORT)
                writer.close()
                return
            await asyncio.sleep(0.01)

    async def _until(self, name: str, look: Callable[[Json | None], Any]) -> Any:
        changed = asyncio.Event()
        end = self.pods.listen(lambda key, _: changed.set() if key[1] == f"{name}-0" else None)
        try:
            async with asyncio.timeout(TIMEOUT.total_seconds()):
                while True:
                    changed.clear()
                    pod = self.pods.get((self.namespace, f"{name}-0"))
                    ending = pod is not None and "deletionTimestamp" in pod["metadata"]
                    if not ending and (found := look(pod)):
                        return found
                    await changed.wait()
        finally:
            end()

    def _stateful_set(self, name: str, *, volumes: bool) -> Json:
        labels = {INSTANCE_LABEL: self.installation.instance, "bench": "bare", "name": name}
        agent = {"name": "agent", "image": {"reference": self.installation.images["agent"]}}
        root = "/opt/agent"
        python = list(agent_python(root))
        mounts = [{"name": "agent", "mountPath": root}]
        claims = []
        if volumes:
            mounts += [{"name": "home", "mountPath": "/home/gemini"}, {"name": "workspace", "mountPath": "/workspace"}]
            claims = [
                {
                    "metadata": {"name": volume, "labels": labels},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2G"}}},
                }
                for volume in ("home", "workspace")
            ]
        container = {
            "name": "bare",
            "image": self.installation.images["sandbox"],
            "command": [*python, "-c", LISTEN],
            "volumeMounts": mounts,
            "resources": {"requests": {"cpu": "20m", "memory": "200M"}, "limits": {"cpu": "1", "memory": "2G"}},
        }
        pod = {
            "hostUsers": not volumes,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [agent],
        }
        return {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "replicas": 1,
                "serviceName": name,
                "selector": {"matchLabels": {"name": name}},
                "template": {"metadata": {"labels": labels}, "spec": pod},
                "volumeClaimTemplates": claims,
            },
        }

    async def forget_bare(self) -> None:
        """Delete every bare StatefulSet with its claims."""
        for path in (
            f"/apis/apps/v1/namespaces/{self.namespace}/statefulsets",
            f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims",
        ):
            found = await self.api.get(path, query={"labelSelector": "bench=bare"})
            for item in found["items"]:
                with suppress(KubeNotFoundError):
                    await self.api.delete(f"{path}/{item['metadata']['name']}", propagation="Background")
        while len(self.pods):
            await asyncio.sleep(0.1)

    async def forget_sandboxes(self) -> None:
        """Erase every sandbox."""
        async with asyncio.TaskGroup() as tasks:
            for found in await self.backend.list():
                tasks.create_task(self.backend.erase(found.sandbox, timeout=TIMEOUT), name=f"erase-{found.sandbox}")


async def first_command(connector: GrpcAgentConnector, endpoint: AgentEndpoint) -> None:
    """Run `true` and wait for its end."""
    async with visit(connector, endpoint) as agent:
        process = ProcessId("first")
        await agent.start_process(process, ProcessSpec(argv=["/bin/true"], environment={"PATH": "/bin:/usr/bin"}))
        await agent.wait_process(process, timeout=timedelta(seconds=10))


def an_incarnation() -> IncarnationId:
    """A fresh id."""
    return IncarnationId(make_id("inc", at=datetime.now(UTC), entropy=os.urandom(10)))


def a_spec() -> SandboxSpec:
    """A basic sandbox."""
    return SandboxSpec(
        sandbox=SandboxId(make_id("sbx", at=datetime.now(UTC), entropy=os.urandom(10))),
        client=ClientId("bench"),
        freelancer=FreelancerId("ada"),
        resources=TIER_RESOURCES[Tier.BASIC],
        tier=Tier.BASIC,
    )


async def repeated(times: int, work: Callable[[], Awaitable[float]]) -> list[float]:
    """One after the other."""
    return [await work() for _ in range(times)]


async def at_once(times: int, work: Callable[[], Awaitable[float]]) -> list[float]:
    """All together."""
    return list(await asyncio.gather(*(work() for _ in range(times))))


async def run(bench: Bench, *, one: int, many: Sequence[int]) -> Mapping[str, Sequence[float]]:
    """Measure everything; what is made is taken away between."""
    figures: dict[str, list[float]] = {}
    running = [asyncio.create_task(bench.pods.run()), asyncio.create_task(bench.backend.run())]
    await bench.pods.wait_synced()

    async def created() -> float:
        seconds, spec, incarnation = await bench.create()
        report = bench.backend.startup(incarnation)
        steps = [f"{step.name.value}={step.duration.total_seconds():.3f}" for step in report.steps] if report else []
        print(f"create {spec.sandbox} {seconds:.3f} {' '.join(steps)}", flush=True)
        return seconds

    await bench.create()  # the images come to the node, the namespace gets its policies
    await bench.forget_sandboxes()
    crowds = [(f"{number} at once", number, at_once) for number in many]
    for at, times, how in (("one at a time", one, repeated), *crowds):
        if not times:
            continue
        figures[f"bare StatefulSet, no volumes, {at}"] = await how(times, lambda: bench.bare(volumes=False))
        await bench.forget_bare()
        figures[f"bare StatefulSet, a sandbox's volumes and user namespace, {at}"] = await how(
            times, lambda: bench.bare(volumes=True)
        )
        await bench.forget_bare()
        figures[f"sandbox created, first command ended, {at}"] = await how(times, created)
        await bench.forget_sandboxes()
    if one:
        figures["bare StatefulSet scaled from 0 to 1, with volumes"] = await bare_restarts(bench, one)
        figures["sandbox started from stopped, first command ended"] = await restarts(bench, one)
        figures["sandbox woken from hibernation, first command ended"] = await wakes(bench, 3 * one)
        await bench.forget_sandboxes()
    for task in running:
        task.cancel()
    return figures


async def bare_restarts(bench: Bench, times: int) -> list[float]:
    """Scale one and the same down and up."""
    await bench.bare(volumes=True)
    name = f"bare-{next(_numbers) - 1}"
    figures = []
    for _ in range(times):
        await bench.stop_bare(name)
        figures.append(await bench.bare_again(name))
    await bench.forget_bare()
    return figures


async def restarts(bench: Bench, times: int) -> list[float]:
    """Stop and start one and the same."""
    _, spec, incarnation = await bench.create()
    figures = []
    for _ in range(times):
        await bench.backend.stop(spec.sandbox, incarnation, grace=timedelta(seconds=1), timeout=TIMEOUT)
        incarnation = an_incarnation()
        figures.append(await bench.start(spec, incarnation))
    return figures


async def wakes(bench: Bench, times: int) -> list[float]:
    """Freeze and shrink one and the same, then thaw it, with its growing asked for beside that, as a wake does."""
    spec, incarnation = a_spec(), an_incarnation()
    endpoint = await bench.backend.start(spec, incarnation, timeout=TIMEOUT)
    figures = []
    async with visit(bench.connector, endpoint) as agent:
        # What runs in a sandbox that rests: a shell with a child.
        idle = ProcessSpec(argv=["/bin/sh", "-c", "sleep 3600; true"], environment={"PATH": "/bin:/usr/bin"})
        await agent.start_process(ProcessId("idle"), idle)
        for number in range(times):
            await agent.freeze()
            await bench.backend.shrink(spec.sandbox, incarnation, timeout=TIMEOUT)
            began = time.monotonic()
            growing = asyncio.create_task(bench.backend.grow(spec.sandbox, incarnation, timeout=TIMEOUT))
            await agent.thaw()
            process = ProcessId(f"woken-{number}")
            await agent.start_process(process, ProcessSpec(argv=["/bin/true"], environment={"PATH": "/bin:/usr/bin"}))
            await agent.wait_process(process, timeout=timedelta(seconds=10))
            figures.append(time.monotonic() - began)
            await growing
    return figures


def table(figures: Mapping[str, Sequence[float]]) -> str:
    """The figures as Markdown."""
    lines = ["| What | Times | P50 (s) | P99 (s) | Mean (s) |", "| --- | ---: | ---: | ---: | ---: |"]
    for what, values in figures.items():
        p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
        lines.append(f"| {what} | {len(values)} | {p50:.3f} | {p99:.3f} | {statistics.mean(values):.3f} |")
    return "\n".join(lines)


async def measure(installation: ClusterInstallation, *, one: int, many: Sequence[int]) -> Mapping[str, Sequence[float]]:
    """Measure on an installation whose operator runs."""
    async with installation.client() as api:
        return await run(Bench(installation, api), one=one, many=many)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, default=10, help="how many one at a time; 0 leaves these out")
    parser.add_argument("--many", type=int, nargs="*", default=[10], help="how many at once, one run for each number")
    options = parser.parse_args()
    cluster = find_cluster()
    if cluster is None:
        raise SystemExit("no cluster is up")
    define_resources(cluster)
    with tempfile.TemporaryDirectory() as home:
        installation = ClusterInstallation(
            cluster=cluster, instance=f"b-{secrets.token_hex(4)}", home=Path(home), images=built_images(cluster)
        )
        try:
            installation.prepare()
            installation.apply_template(overcommit=OVERCOMMIT)
            installation.start_operator()
            print(table(asyncio.run(measure(installation, one=options.one, many=options.many))))
        finally:
            installation.clean()
            installation.stop_operator()


if __name__ == "__main__":
    main()
