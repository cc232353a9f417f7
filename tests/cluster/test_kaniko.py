"""Builds by kaniko in real pods: what was installed is in the next pod, and a build that is left leaves nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from devcluster.places import NODE_ADDRESS, REGISTRY_PORT
from sandboxd.backends.kubernetes.kaniko_builds import AGENT_ROOT, BUILD_LABEL, BuildPlace, KubernetesKanikoBuilds
from sandboxd.backends.registry.client import OciRegistry
from sandboxd.images.baselines import RegistryBaselines
from sandboxd.images.building import BuildRules
from sandboxd.images.kaniko import KanikoImageBuilder, KanikoOrder
from sandboxd.images.layer_process import WorkerLayerWriter
from sandboxd.images.ports import BuildOrder, BuiltImage, ImageLimits, ImageReference
from sandboxd.images.spool import Spool
from sandboxd.kubeapi.client import KubeClient
from sandboxd.model.cluster import INSTANCE_LABEL
from sandboxd.model.errors import UnavailableError
from sandboxd.operator.pod_shape import agent_python
from tests.chart.helm import TRIAL, render
from tests.cluster.capturing import INCARNATION, LONG, SANDBOX, capture_of
from tests.cluster.pod_world import DIGESTS, PodWorld, a_pod, image
from tests.cluster.test_built_images import INSTALL, LOOK
from tests.eventually import eventually
from tests.kube import Cluster

pytestmark = pytest.mark.timeout(480)
SOON = timedelta(seconds=30)
LIMITS = ImageLimits(raw_bytes=1 << 30, compressed_bytes=1 << 30)


@dataclass(kw_only=True)
class Yard:
    """A namespace for builds, and what builds there."""

    cluster: Cluster
    registry: OciRegistry
    api: KubeClient
    baselines: RegistryBaselines
    directory: Path
    namespace: str
    repository: str
    base: ImageReference

    def builds(self, kaniko: str = "") -> KubernetesKanikoBuilds:
        place = BuildPlace(
            namespace=self.namespace,
            instance=self.namespace,
            image=kaniko or image("kaniko"),
            agent_image=image("agent"),
            registry=f"{NODE_ADDRESS}:{REGISTRY_PORT}",
            plain=True,
        )
        return KubernetesKanikoBuilds(self.api, place=place, image_patience=timedelta(seconds=3))

    async def build(self, world: PodWorld, generation: int, previous: ImageReference | None) -> BuiltImage:
        builder = KanikoImageBuilder(
            registry=self.registry,
            baselines=self.baselines,
            capture=await capture_of(world),
            writer=WorkerLayerWriter(),
            spool=Spool(directory=self.directory / "spool", size_bytes=1 << 30, least_free_bytes=0),
            rules=BuildRules(registry=self.base.registry),
            builds=self.builds(),
            python=agent_python(AGENT_ROOT),
            build_registry=f"{NODE_ADDRESS}:{REGISTRY_PORT}",
        )
        order = BuildOrder(
            sandbox=SANDBOX,
            incarnation=INCARNATION,
            base=self.base,
            repository=self.repository,
            generation=generation,
            limits=LIMITS,
            previous=previous,
            labels={"dev.sandboxd.client": "acme"},
        )
        return await builder.build(order, timeout=LONG, progress=lambda _: None)

    async def left(self) -> list[str]:
        """Jobs and pods of builds."""
        found = await self.cluster.kubectl(
            "get", "jobs,pods", "-n", self.namespace, "-l", BUILD_LABEL, "-o", "name", within=60
        )
        return found.split()


async def as_serve(cluster: Cluster, instance: str, namespace: str, kubeconfig: Path) -> Path:
    """Make the namespace of builds as the chart does; answer a kubeconfig with the rights of its `serve` there."""
    kaniko = {"namespace": namespace, "image": "k", "agentImage": "a", "registry": f"{NODE_ADDRESS}:{REGISTRY_PORT}"}
    kept = {"registry": "localhost:5000", "plain": True, "builder": "kaniko", "kaniko": kaniko}
    system = f"{instance}-system"
    rendered = await asyncio.to_thread(render, {**TRIAL, "keptImages": kept}, namespace=system)
    objects = [
        one
        for one in rendered
        if namespace
        in {one["metadata"].get("namespace"), one["metadata"]["name"] if one["kind"] == "Namespace" else ""}
    ]
    (binding,) = (one for one in objects if one["kind"] == "RoleBinding")
    account = binding["subjects"][0]["name"]
    await cluster.kubectl("create", "namespace", system)
    await cluster.kubectl("create", "serviceaccount", account, "-n", system)
    await cluster.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    await cluster.kubectl("label", "namespace", namespace, system, f"{INSTANCE_LABEL}={instance}")
    token = await cluster.kubectl("create", "token", account, "-n", system)
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"token": token.strip()}
    kubeconfig.write_text(yaml.safe_dump(config))
    return kubeconfig


@pytest.fixture
async def yard(cluster: Cluster, instance: str, tmp_path: Path) -> AsyncIterator[Yard]:
    if cluster.places is None:
        pytest.skip("pods reach the registry of the development cluster alone")
    if "kaniko" not in json.loads(DIGESTS.read_text())["images"]:
        pytest.skip("needs kaniko's image: make images IMAGES_ARGS=kaniko")
    namespace = f"{instance}-images"
    kubeconfig = await as_serve(cluster, instance, namespace, tmp_path / "serve.kubeconfig")
    async with OciRegistry(cluster.registry, plain=True) as registry, KubeClient(kubeconfig) as api:
        yard = Yard(
            cluster=cluster,
            registry=registry,
            api=api,
            baselines=RegistryBaselines(registry=registry, directory=tmp_path / "bases", size_bytes=1 << 30),
            directory=tmp_path,
            namespace=namespace,
            repository=f"{instance}/gemini-cli-user-kept",
            base=ImageReference.parse(image("sandbox")),
        )
        yield yard
        for tag in await registry.tags(yard.repository, timeout=SOON):
            found = await registry.manifest(yard.repository, tag, timeout=SOON)
            await registry.delete(yard.repository, found.digest, timeout=SOON)


async def test_what_was_installed_is_in_the_next_pod_and_committing_that_changes_nothing(
    cluster: Cluster, instance: str, yard: Yard
) -> None:
    async with a_pod(cluster, instance) as world:
        await world.connect()
        said = await world.run(INSTALL)
        assert "done" in said, said
        built = await yard.build(world, 1, None)
        assert await yard.left() == []
    assert not built.unchanged
    assert 3_000_000 < built.raw_bytes < 10_000_000, "and nothing of the base in it"
    assert built.image is not None
    assert await yard.registry.tags(yard.repository, timeout=SOON) == ["g000001"]

    second = f"{instance}-next"
    try:
        async with a_pod(cluster, second, sandbox=str(built.image)) as world:
            await world.connect()
            there = await world.run(LOOK)
            from_there = await yard.build(world, 2, built.image)
    finally:
        await cluster.clean(second)

    random = next(line for line in said.splitlines() if line.endswith("/opt/random"))
    assert there.splitlines() == ["it runs", "install ok installed", "6755 1000 2", "gone", random, "sudo"]
    assert (from_there.unchanged, from_there.image) == (True, built.image)


async def test_a_build_that_cannot_run_or_is_left_leaves_nothing(yard: Yard) -> None:
    other = ImageReference.parse(image("agent"))  # has nothing of a hand-over in it
    order = KanikoOrder(
        sandbox=SANDBOX,
        generation=1,
        base=replace(yard.base, registry=f"{NODE_ADDRESS}:{REGISTRY_PORT}"),
        handover=other,
        repository=yard.repository,
        tag="g000001",
        labels={},
        raw_bytes=0,
    )

    with pytest.raises(UnavailableError, match="does not start.*kaniko:none"):
        await yard.builds("localhost:5000/sandboxd/kaniko:none").run(order, timeout=LONG)
    assert await yard.left() == []
    with pytest.raises(UnavailableError, match="The build failed.*executor"):
        await yard.builds().run(order, timeout=LONG)
    assert await yard.left() == []
    building = asyncio.create_task(yard.builds().run(order, timeout=LONG))
    await eventually(yard.left, within=60, every=0.2, what="a build runs")
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert await yard.left() == []
    assert await yard.registry.tags(yard.repository, timeout=SOON) == []
