"""Placeholders on a full node: a sandbox that fits nowhere takes the place of one, a pod without priority does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.model.cluster_status import PlacedState, Reason
from sandboxd.model.quantity import parse_quantity, scale_bytes
from sandboxd.operator.template import DEFAULT_MEMORY_FACTOR
from tests.chart.helm import NO_HELM, TRIAL, Object, find_helm, of_kind, render
from tests.cluster.operator_stage import Json, Stage, a_stage
from tests.eventually import eventually
from tests.kube import Cluster

pytestmark = [pytest.mark.timeout(400), pytest.mark.skipif(find_helm() is None, reason=NO_HELM)]

HELD = "4G"
"""Of memory by each placeholder: few of them fill a node."""
LIMIT = "17G"
"""A sandbox with this limit requests more than a placeholder holds: it does not fit into what they leave."""


@pytest.fixture
async def stage(cluster: Cluster, instance: str, tmp_path: Path) -> Stage:
    return await a_stage(cluster, instance, tmp_path)


async def room(cluster: Cluster) -> int:
    """How much memory nodes have, at most, for the pods of this test."""
    nodes = (await cluster.get("nodes"))["items"]
    return int(sum(parse_quantity(node["status"]["allocatable"]["memory"]) for node in nodes))


def chart(stage: Stage, *, replicas: int) -> Sequence[Object]:
    """What the chart makes for headroom: both classes, and the placeholders."""
    size = {"replicas": replicas, "cpu": "1m", "memory": HELD}
    image = f"{stage.cluster.registry.replace('127.0.0.1', 'localhost')}/pause:1"
    values = {**TRIAL, "headroom": {"image": image, "basic": size}}
    objects = render(values, release=stage.instance, namespace=f"{stage.instance}-system")
    made = [*of_kind(objects, "PriorityClass"), *(one for one in of_kind(objects, "Deployment") if _holds(one))]
    for one in of_kind(made, "Deployment"):
        for container in one["spec"]["template"]["spec"]["containers"]:
            del container["command"]  # the image of the tests pauses by itself, and has no `sleep`
    return made


def _holds(made: Object) -> bool:
    return "headroom" in made["metadata"]["name"]


def placed(pods: Sequence[Json]) -> Iterator[Json]:
    return (pod for pod in pods if pod["spec"].get("nodeName") and "deletionTimestamp" not in pod["metadata"])


@pytest.mark.usefixtures("whole_nodes")
async def test_a_sandbox_takes_the_place_of_placeholders_when_the_nodes_are_full(stage: Stage) -> None:
    cluster, system = stage.cluster, f"{stage.instance}-system"
    request = parse_quantity(scale_bytes(LIMIT, DEFAULT_MEMORY_FACTOR))
    assert request > parse_quantity(HELD)
    made = chart(stage, replicas=int(await room(cluster) // parse_quantity(HELD)) + 1)
    names = {one["metadata"]["name"].rpartition("-")[2]: one["metadata"]["name"] for one in made}
    large = replace(stage.a_sandbox()[1].resources, cpu="10m", memory=LIMIT)

    async def placeholders() -> Sequence[Json]:
        found: Sequence[Json] = (await cluster.get("pods", "-n", system, "-l", "app.kubernetes.io/component"))["items"]
        return found

    async def full() -> bool:
        pods = await placeholders()
        waiting = [one for pod in pods for one in pod["status"].get("conditions", ()) if one["type"] == "PodScheduled"]
        return any(one["status"] == "False" for one in waiting) and bool(list(placed(pods)))

    async def settled() -> bool:
        pods = (await cluster.get("pods", "--all-namespaces"))["items"]
        return not [one for one in pods if "deletionTimestamp" in one["metadata"]]

    # What other tests have left and is still ending would make room later, and nobody would have to give way.
    await eventually(settled, within=60, every=0.5)
    async with stage.operator():
        # Their namespace is an installation's: nothing but the pods themselves is of interest here.
        await cluster.apply(made)
        await eventually(full, within=60, every=0.2)
        before = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in placed(await placeholders())}

        await stage.template(priorityClassName=names["placeholders"])
        low, low_spec = stage.a_sandbox(resources=large)
        await stage.write(low, low_spec)
        await stage.reaches(low, Reason.UNSCHEDULABLE)
        await stage.kubectl("delete", "sandbox", low, "--wait=false")

        await stage.template(priorityClassName=names["sandboxes"])
        sandbox, spec = stage.a_sandbox(resources=large)
        await stage.write(sandbox, spec)
        await stage.reaches(sandbox, PlacedState.RUNNING)

        pod = await stage.get("pod", f"{sandbox}-0")
        after = {one["metadata"]["uid"] for one in placed(await placeholders())}
        gone = {name for uid, name in before.items() if uid not in after}

        async def told() -> bool:
            events = (await cluster.get("events", "-n", system, "--field-selector=reason=Preempted"))["items"]
            return any(
                one["involvedObject"]["name"] in gone and pod["metadata"]["uid"] in one["message"] for one in events
            )

        await eventually(told, within=30, every=0.2)
        assert len(gone) < len(before), "one or two of them are enough"
