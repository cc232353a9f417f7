"""Volumes of a true size: full means full, and another tier's size is asked for, waited for and used."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.model.cluster import Mode, claims_of
from sandboxd.model.cluster_status import ConditionType, PlacedState, Reason
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import Tier
from tests.cluster.loop_volumes import LoopVolumes, loop_volumes
from tests.cluster.operator_stage import Stage, a_stage, an_incarnation
from tests.eventually import eventually
from tests.kube import Cluster, KubectlError

pytestmark = pytest.mark.timeout(240)

S, R = PlacedState, Reason
SMALL, LARGE = 32, 96
"""Megabytes of a workspace before and after."""


@pytest.fixture
async def stage(cluster: Cluster, instance: str, tmp_path: Path) -> Stage:
    return await a_stage(cluster, instance, tmp_path)


@pytest.fixture
async def volumes(cluster: Cluster, instance: str, tmp_path: Path) -> AsyncIterator[LoopVolumes]:
    with loop_volumes(cluster, instance, tmp_path) as made:
        yield made
        await cluster.kubectl("delete", "pv,storageclass", "-l", f"sandboxd.dev/instance={instance}", "--wait=false")


async def fill(stage: Stage, sandbox: SandboxId, name: str, *, megabytes: int) -> str:
    """Write a file into the workspace; answers what was said when that failed."""
    command = ("dd", "if=/dev/zero", f"of=/workspace/{name}", "bs=1M", f"count={megabytes}", "conv=fsync")
    try:
        await stage.cluster.run_in(stage.namespace, f"{sandbox}-0", *command)
    except KubectlError as error:
        return str(error)
    return ""


async def pending(stage: Stage, sandbox: SandboxId) -> Reason | None:
    found = (await stage.status(sandbox)).find(ConditionType.RESIZE_PENDING)
    return found.reason if found is not None and found.status else None


async def test_a_full_volume_is_full_and_its_claim_asks_for_what_another_tier_has(
    stage: Stage, volumes: LoopVolumes, pod_images: Mapping[str, str]
) -> None:
    await stage.template(image=pod_images["sandbox"], storageClassName=volumes.storage_class)
    sandbox, spec = stage.a_sandbox()
    spec = replace(spec, resources=replace(spec.resources, home=f"{SMALL}Mi", workspace=f"{SMALL}Mi"))
    await volumes.offer(claims_of(sandbox), namespace=stage.namespace, megabytes=SMALL)

    async with stage.operator():
        await stage.write(sandbox, spec)
        await stage.reaches(sandbox, S.RUNNING)

        assert "No space left on device" in await fill(stage, sandbox, "large", megabytes=SMALL)
        await stage.cluster.run_in(stage.namespace, f"{sandbox}-0", "sh", "-c", "echo mine > /home/gemini/kept")

        larger = replace(spec.resources, workspace=f"{LARGE}Mi")
        await stage.write(sandbox, replace(spec, tier=Tier.STANDARD, resources=larger))

        async def waits() -> bool:
            return await pending(stage, sandbox) is R.EXPANSION_WAITS

        await eventually(waits, within=30, every=0.2)
        claim = await stage.get("pvc", claims_of(sandbox)["workspace"])
        assert claim["spec"]["resources"]["requests"]["storage"] == f"{LARGE}Mi"
        assert "No space left on device" in await fill(stage, sandbox, "large", megabytes=SMALL)

        await stage.write(sandbox, replace(spec, tier=Tier.STANDARD, resources=larger, mode=Mode.STOPPED))
        await stage.reaches(sandbox, S.STOPPED)
        await volumes.grow("workspace", megabytes=LARGE)
        started = replace(spec, tier=Tier.STANDARD, resources=larger, incarnation=an_incarnation())
        await stage.write(sandbox, started)
        await stage.reaches(sandbox, S.RUNNING, started.incarnation)

        async def grown() -> bool:
            return await pending(stage, sandbox) is None

        await eventually(grown, within=30, every=0.2)
        assert await fill(stage, sandbox, "large", megabytes=2 * SMALL) == ""
        kept = await stage.cluster.run_in(stage.namespace, f"{sandbox}-0", "cat", "/home/gemini/kept")
        assert kept.strip() == "mine"

        await stage.kubectl("delete", "sandbox", sandbox, "--wait=false")

        async def ended() -> bool:
            return not await stage.exists("pod", f"{sandbox}-0")

        await eventually(ended, within=60, every=0.2)
