"""The operator dies at each of its writes, before it was sent and after it was done: the next one comes to the same."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from typing_extensions import override

from sandboxd.kubeapi.ports import Json
from sandboxd.model.cluster import API_VERSION, Mode, PlacedSpec, sandbox_resource
from sandboxd.model.cluster_probe import KEPT, PlacedProbe, probe_resource
from sandboxd.model.sandbox import Tier
from sandboxd.operator.metrics import OperatorMetrics
from sandboxd.operator.ports import AgentIdentities, AgentIdentity
from sandboxd.operator.room import Operator, OperatorSettings
from tests.eventually import eventually
from tests.fakes.controllers import Died, FakeCluster, MortalApi
from tests.fakes.manager import FakeClock
from tests.operator_world import (
    INSTANCE,
    NAMESPACE,
    OWN_IMAGE,
    RESOURCES,
    SANDBOX,
    SECOND,
    SETTINGS,
    a_namespace,
    a_spec,
)

BIGGER = replace(RESOURCES, cpu="2", memory="4G", workspace="40G")


class Identities(AgentIdentities):
    @override
    def issue(self, incarnation: Any) -> AgentIdentity:
        return AgentIdentity(certificate=b"certificate", key=b"key", authority=b"authority")


@asynccontextmanager
async def an_operator(cluster: FakeCluster, *, dies_at: int = 0, done: bool = False) -> AsyncIterator[MortalApi]:
    """One life of an operator; the Lease of the one before has run out."""
    await cluster.drop("leases", "own", f"sandboxd-operator-{INSTANCE}")
    api = MortalApi(cluster, dies_at=dies_at, done=done)
    settings = OperatorSettings(plan=SETTINGS, namespace="own", identity="one", lease=timedelta(seconds=60))
    made = Operator(
        api,
        settings=settings,
        identities=Identities(),
        clock=FakeClock(),
        metrics=OperatorMetrics(CollectorRegistry()),
    )
    running = asyncio.create_task(made.run())
    try:
        yield api
    finally:
        api.dead = True
        running.cancel()
        with pytest.raises((asyncio.CancelledError, BaseExceptionGroup, Died)):
            await running


async def a_cluster(spec: PlacedSpec | None) -> FakeCluster:
    """With everything that is there before; and with a sandbox that has come to this."""
    cluster = FakeCluster()
    await cluster.put("namespaces", {"metadata": {"name": "own"}})
    await cluster.put("namespaces", a_namespace())
    await cluster.put("nodes", {"metadata": {"name": "node1"}, "status": {"conditions": [_ready()]}})
    await cluster.put("storageclasses", {"metadata": {"name": "standard"}, "allowVolumeExpansion": True})
    template = {"image": "registry.example/sandbox@sha256:1", "agentImage": "registry.example/agent@sha256:2"}
    await cluster.put("sandboxtemplates", {"metadata": {"name": "default"}, "spec": template})
    if spec is not None:
        await write(cluster, spec)
        async with an_operator(cluster):
            await eventually(lambda: is_settled(cluster), within=5, every=0.005)
        cluster.pods_made.clear()
        cluster.told.clear()
    return cluster


def _ready() -> Json:
    return {"type": "Ready", "status": "True"}


async def write(cluster: FakeCluster, spec: PlacedSpec) -> None:
    """As `serve` does."""
    found = cluster.objects.get(("sandboxes", NAMESPACE, SANDBOX))
    if found is None:
        body = sandbox_resource(SANDBOX, spec, namespace=NAMESPACE, instance=INSTANCE)
        await cluster.create(f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/sandboxes", body)
        return
    changed = copy.deepcopy(found)
    changed["spec"] = spec.as_mapping()
    changed["metadata"]["generation"] += 1
    await cluster.put("sandboxes", changed)


def is_settled(cluster: FakeCluster) -> bool:
    found = cluster.objects.get(("sandboxes", NAMESPACE, SANDBOX))
    if found is None:
        return True
    status = found.get("status", {})
    still = status.get("state") in ("Pending", "Starting", "Stopping", None) or "deletionTimestamp" in found["metadata"]
    return status.get("observedGeneration") == found["metadata"]["generation"] and not still


async def delete(cluster: FakeCluster) -> None:
    await cluster.delete(f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/sandboxes/{SANDBOX}")


Change = PlacedSpec | Callable[[FakeCluster], Any]
CASES: dict[str, tuple[PlacedSpec | None, Change]] = {
    "creation": (None, a_spec()),
    "stop": (a_spec(), a_spec(mode=Mode.STOPPED)),
    "start": (a_spec(mode=Mode.STOPPED), a_spec(incarnation=SECOND)),
    "another incarnation": (a_spec(), a_spec(incarnation=SECOND)),
    "hibernation": (a_spec(), a_spec(mode=Mode.HIBERNATED)),
    "wake": (a_spec(mode=Mode.HIBERNATED), a_spec()),
    "another tier": (a_spec(), a_spec(tier=Tier.STANDARD, resources=BIGGER)),
    "another image": (a_spec(), a_spec(image=OWN_IMAGE)),
    "deletion": (a_spec(), delete),
    "deletion of a stopped one": (a_spec(mode=Mode.STOPPED), delete),
    "erasure": (a_spec(kept=False), delete),
}


async def happen(cluster: FakeCluster, change: Change) -> None:
    if isinstance(change, PlacedSpec):
        await write(cluster, change)
    else:
        await change(cluster)


async def calm(cluster: FakeCluster, wanted: dict[str, Any] | None = None) -> dict[str, Any]:
    """The world, once the operator has nothing more to do."""

    async def settled() -> dict[str, Any]:
        assert is_settled(cluster)
        found = cluster.snapshot()
        assert wanted is None or found == wanted
        return found

    return await eventually(settled, within=5, every=0.005)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("case", CASES)
async def test_an_operator_that_dies_at_any_write_is_followed_by_one_that_comes_to_the_same(
    case: str, done: bool
) -> None:
    before, change = CASES[case]
    cluster = await a_cluster(before)
    async with an_operator(cluster):
        await happen(cluster, change)
        wanted = await calm(cluster)
    pods, writes = cluster.pods_made, 0

    while True:
        cluster = await a_cluster(before)
        writes += 1
        async with an_operator(cluster, dies_at=writes, done=done) as dying:
            await happen(cluster, change)
            await eventually(lambda: dying.dead or cluster.snapshot() == wanted, within=5, every=0.005)  # noqa: B023
        async with an_operator(cluster):
            await calm(cluster, wanted)
        assert cluster.pods_made == pods, f"write {writes}: no pod may be made twice"
        assert "DriftRepaired" not in cluster.told, f"write {writes}"
        if not dying.struck:
            break
    assert writes > 1, "it has written something"


PROBE = PlacedProbe(sandbox=SANDBOX, image=OWN_IMAGE, deadline=timedelta(seconds=60))
PROBE_KEY = ("sandboxprobes", NAMESPACE, "probe-1")
POD_KEY = ("pods", NAMESPACE, "probe-1")


async def a_probed_cluster() -> FakeCluster:
    cluster = await a_cluster(a_spec())
    uid = cluster.objects["sandboxes", NAMESPACE, SANDBOX]["metadata"]["uid"]
    body = probe_resource("probe-1", PROBE, namespace=NAMESPACE, instance=INSTANCE, owner_uid=uid)
    made = {"uid": "uid-probe", "creationTimestamp": f"{FakeClock().now():%Y-%m-%dT%H:%M:%SZ}"}
    await cluster.put("sandboxprobes", {**body, "metadata": {**body["metadata"], **made}})
    return cluster


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("dies_at", range(5))
async def test_an_operator_that_dies_makes_no_second_pod_of_a_probe_and_loses_no_verdict(
    dies_at: int, done: bool
) -> None:
    cluster = await a_probed_cluster()
    seen: set[str] = set()

    async def says(state: str) -> bool:
        if (pod := cluster.objects.get(POD_KEY)) is not None:
            seen.add(pod["metadata"]["uid"])
            if "status" not in pod:
                ended = {"terminated": {"exitCode": 0, "reason": "Completed"}}
                status = {"phase": "Succeeded", "containerStatuses": [{"name": "sandbox", "state": ended}]}
                await cluster.put("pods", {**pod, "status": status})
        return bool(cluster.objects[PROBE_KEY].get("status", {}).get("state") == state)

    async def over() -> bool:
        return api.dead or await says("Booted")

    async def gone() -> bool:
        return await says("Booted") and POD_KEY not in cluster.objects

    async with an_operator(cluster, dies_at=dies_at, done=done) as api:
        await eventually(over, within=5, every=0.005)
    async with an_operator(cluster):
        await eventually(gone, within=5, every=0.005)

    assert len(seen) == 1
    assert cluster.objects[PROBE_KEY]["status"]["podUID"] == next(iter(seen))


async def test_an_operator_removes_a_probe_that_its_service_and_the_operator_before_have_left() -> None:
    cluster = await a_probed_cluster()
    old = FakeClock().now() - PROBE.deadline - KEPT
    cluster.objects[PROBE_KEY]["metadata"]["creationTimestamp"] = f"{old:%Y-%m-%dT%H:%M:%SZ}"

    async with an_operator(cluster):
        await eventually(lambda: PROBE_KEY not in cluster.objects, within=5, every=0.005)

    assert POD_KEY not in cluster.objects
