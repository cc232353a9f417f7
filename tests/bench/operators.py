"""What the operator adds to a start, and what it costs to know many sandboxes. Needs a cluster that is up.

`python -m tests.bench.operators --hops 30 --sandboxes 1000`: for each hop a `Sandbox` is created and the time is taken
until a watch shows its StatefulSet, beside a StatefulSet that is created directly; then so many stopped sandboxes are
made, and the operator's processor time and memory are read while they rest.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from sandboxd.kubeapi.client import KubeClient
from sandboxd.kubeapi.reflector import Key, Reflector
from sandboxd.model.cluster import Mode, sandbox_resource
from sandboxd.operator.kinds import Kind
from tests.bench.figures import percentile
from tests.cluster.operator_stage import Stage, a_stage, leads
from tests.eventually import eventually
from tests.kube import Cluster, define_resources, find_cluster

REST_SECONDS = 30.0


async def hops(stage: Stage, api: KubeClient, number: int) -> tuple[list[float], list[float]]:
    """Measure milliseconds from before a request until a StatefulSet was seen.

    First the request is for a bare StatefulSet, the floor, then for a sandbox; by turns, so that both meet the same
    machine.
    """
    seen: dict[str, float] = {}

    def look(key: Key, obj: Mapping[str, Any] | None) -> None:
        if obj is not None:
            seen.setdefault(key[1], time.perf_counter())

    mirror = Reflector(api, Kind.STATEFUL_SET.within(stage.namespace))
    mirror.listen(look)
    running = asyncio.create_task(mirror.run())
    await mirror.wait_synced()
    floor, taken = [], []
    try:
        for turn in range(number):
            sandbox, spec = stage.a_sandbox()
            bare = {
                "apiVersion": "apps/v1",
                "kind": "StatefulSet",
                "metadata": {"name": f"bare-{turn}"},
                "spec": {
                    "replicas": 0,
                    "selector": {"matchLabels": {"app": "bare"}},
                    "template": {
                        "metadata": {"labels": {"app": "bare"}},
                        "spec": {"containers": [{"name": "bare", "image": "localhost:5000/pause:1"}]},
                    },
                },
            }
            began = time.perf_counter()
            await api.create(Kind.STATEFUL_SET.within(stage.namespace), bare)
            floor.append((await _seen(seen, f"bare-{turn}") - began) * 1000)
            body = sandbox_resource(sandbox, spec, namespace=stage.namespace, instance=stage.instance)
            began = time.perf_counter()
            await api.create(Kind.SANDBOX.within(stage.namespace), body)
            taken.append((await _seen(seen, sandbox) - began) * 1000)
            # Its pod must not compete with the next one.
            path = Kind.SANDBOX.path(stage.namespace, sandbox)
            await api.patch(path, {"spec": {"mode": "Stopped"}})
            await api.delete(path)
    finally:
        running.cancel()
    return floor, taken


async def _seen(seen: Mapping[str, float], name: str) -> float:
    return await eventually(lambda: seen.get(name, 0.0), within=30, every=0.001)


async def requests_so_far(cluster: Cluster) -> float:
    """How many requests the API server has answered since it runs, all of everybody's: watches when they end."""
    counters = (await cluster.kubectl("get", "--raw", "/metrics")).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in counters if line.startswith("apiserver_request_total{"))


async def rest(cluster: Cluster, stage: Stage, api: KubeClient, process: psutil.Process, number: int) -> str:
    """Make so many stopped sandboxes, and say what they cost."""
    limit = asyncio.Semaphore(16)

    async def make() -> None:
        sandbox, spec = stage.a_sandbox(mode=Mode.STOPPED)
        async with limit:
            body = sandbox_resource(sandbox, replace(spec), namespace=stage.namespace, instance=stage.instance)
            await api.create(Kind.SANDBOX.within(stage.namespace), body)

    asked = await requests_so_far(cluster)
    await asyncio.sleep(REST_SECONDS)
    base = await requests_so_far(cluster) - asked
    before, began = process.memory_info().rss, time.perf_counter()
    cpu_before = sum(process.cpu_times()[:2])
    await asyncio.gather(*(make() for _ in range(number)))

    async def settled() -> bool:
        found = await api.get(Kind.SANDBOX.within(stage.namespace))
        return all(one.get("status", {}).get("state") == "Stopped" for one in found["items"])

    await eventually(settled, within=60 + number, every=5)
    made, cpu_made = time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu_before
    asked, start, cpu_start = await requests_so_far(cluster), time.perf_counter(), sum(process.cpu_times()[:2])
    await asyncio.sleep(REST_SECONDS)
    share = (sum(process.cpu_times()[:2]) - cpu_start) / (time.perf_counter() - start)
    rss, asked = process.memory_info().rss, await requests_so_far(cluster) - asked
    hours = REST_SECONDS / 3600
    return (
        f"{number} stopped sandboxes: converged in {made:.1f} s ({cpu_made:.1f} s of processor); at rest "
        f"{share:.2%} of a core, {rss / 1e6:.0f} MB resident ({(rss - before) / 1e6:.0f} MB more than without them); "
        "the API server answered "
        f"{asked / REST_SECONDS:.1f} requests a second at rest, {base / REST_SECONDS:.1f} without them: "
        f"{(asked - base) / hours / number:.2f} for each sandbox and hour"
    )


async def main(arguments: argparse.Namespace) -> None:
    """Measure."""
    cluster = find_cluster()
    if cluster is None:
        sys.exit("no cluster is up")
    define_resources(cluster)
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    instance = f"b-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as directory:
        try:
            stage = await a_stage(cluster, instance, Path(directory))
            async with stage.operator() as role, KubeClient(cluster.kubeconfig) as api:

                async def leading() -> bool:
                    return await leads(role)

                await eventually(leading, within=30)
                assert role.process is not None
                process = psutil.Process(role.process.pid)
                if arguments.hops:
                    floor, taken = await hops(stage, api, arguments.hops)
                    for what, values in (("StatefulSet", floor), ("Sandbox", taken)):
                        print(
                            f"{what} created -> StatefulSet seen, {len(values)} one at a time: "
                            f"P50 {statistics.median(values):.1f} ms, P99 {percentile(values, 0.99):.1f} ms, "
                            f"least {min(values):.1f} ms"
                        )
                if arguments.sandboxes:
                    print(await rest(cluster, stage, api, process, arguments.sandboxes))
        finally:
            await cluster.clean(instance)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hops", type=int, default=30)
    parser.add_argument("--sandboxes", type=int, default=1000)
    asyncio.run(main(parser.parse_args()))
