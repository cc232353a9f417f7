"""GPUs of the premium tier, as an extended resource that a node is said to have."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.model.cluster import Mode
from sandboxd.model.cluster_status import ConditionType, PlacedState, Reason
from sandboxd.model.sandbox import Tier
from tests.cluster.operator_stage import Stage, a_stage, an_incarnation
from tests.eventually import eventually
from tests.kube import Cluster

pytestmark = pytest.mark.timeout(240)

S, R = PlacedState, Reason


@pytest.fixture
async def stage(cluster: Cluster, instance: str, tmp_path: Path) -> Stage:
    return await a_stage(cluster, instance, tmp_path)


@pytest.fixture
async def gpu(cluster: Cluster, instance: str) -> AsyncIterator[str]:
    """A resource of this test alone, of which one node has one; the node is as it was afterwards."""
    resource = f"gpu.sandboxd.test/{instance}"
    node = (await cluster.get("nodes"))["items"][0]["metadata"]["name"]

    async def say(count: str | None) -> None:
        body = {"status": {part: {resource: count} for part in ("capacity", "allocatable")}}
        await cluster.kubectl("patch", "node", node, "--subresource=status", "--type=merge", f"-p={json.dumps(body)}")

    await say("1")
    try:
        yield resource
    finally:
        await say(None)


async def test_a_gpu_comes_and_goes_with_a_restart_and_is_given_to_one_at_a_time(stage: Stage, gpu: str) -> None:
    await stage.template(gpuResource=gpu)
    sandbox, spec = stage.a_sandbox()
    premium = replace(spec, tier=Tier.PREMIUM, resources=replace(spec.resources, gpu=1))

    async with stage.operator():
        await stage.write(sandbox, spec)
        first = await stage.reaches(sandbox, S.RUNNING)

        await stage.write(sandbox, premium)

        async def restart_needed() -> bool:
            found = (await stage.status(sandbox)).find(ConditionType.RESIZE_PENDING)
            return found is not None and (found.status, found.reason) == (True, R.RESTART_NEEDED)

        await eventually(restart_needed, within=30, every=0.2)
        assert (await stage.status(sandbox)).pod_uid == first.pod_uid, "nothing that runs is ended for it"

        with_gpu = replace(premium, incarnation=an_incarnation())
        await stage.write(sandbox, with_gpu)
        second = await stage.reaches(sandbox, S.RUNNING, with_gpu.incarnation)
        pod = await stage.get("pod", f"{sandbox}-0")
        assert pod["spec"]["containers"][0]["resources"]["limits"][gpu] == "1"
        pending = second.find(ConditionType.RESIZE_PENDING)
        assert pending is not None
        assert not pending.status

        other, other_spec = stage.a_sandbox(tier=Tier.PREMIUM, resources=premium.resources)
        await stage.write(other, other_spec)
        waiting = await stage.reaches(other, S.PENDING, R.UNSCHEDULABLE)
        assert f"Insufficient {gpu}" in waiting.message

        without = replace(spec, incarnation=an_incarnation())
        await stage.write(sandbox, without)
        await stage.reaches(sandbox, S.RUNNING, without.incarnation)
        await stage.reaches(other, S.RUNNING)
        pod = await stage.get("pod", f"{sandbox}-0")
        assert gpu not in pod["spec"]["containers"][0]["resources"]["limits"]

        await stage.write(other, replace(other_spec, mode=Mode.STOPPED))
        await stage.reaches(other, S.STOPPED)
