"""What is promised of the images that sandboxes run from: held by the fake, and by clusters in memory and real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Protocol

import pytest

from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.pod_place import POD_PLACE
from sandboxd.images.ports import ImageReference, RunningImages
from sandboxd.manager.backend_port import SandboxSpec
from sandboxd.model.cluster_status import PlacedStatus
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, make_id
from sandboxd.model.image_errors import ImageUnnamedError
from sandboxd.model.sandbox import TIER_RESOURCES, Tier
from tests.cluster.images import own_image
from tests.contract.test_backend import SystemClock
from tests.eventually import eventually
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.cluster_operator import BASE_IMAGE, FakeOperator
from tests.fakes.images import BASE, FakeRunningImages, an_image
from tests.fakes.kube import FakeKube
from tests.fakes.manager import FakeBackend
from tests.installation import ClusterInstallation

TIMEOUT = timedelta(seconds=60)
GRACE = timedelta(seconds=1)
_numbers = count(1)


class ImagesWorld(Protocol):
    @property
    def images(self) -> RunningImages: ...

    @property
    def base(self) -> str:
        """What a sandbox without an image of its own is made from."""

    async def own(self) -> ImageReference:
        """An image of the freelancer's that a sandbox can start from."""

    async def start(self, spec: SandboxSpec, incarnation: IncarnationId) -> None: ...

    async def stop(self, sandbox: SandboxId, incarnation: IncarnationId) -> None: ...

    async def next(self, sandbox: SandboxId) -> str:
        """What a pod would be made from that nobody asked for."""


@dataclass(kw_only=True)
class FakeWorld:
    backend: FakeBackend
    images: FakeRunningImages
    base: str = str(BASE)

    async def own(self) -> ImageReference:
        return an_image()

    async def start(self, spec: SandboxSpec, incarnation: IncarnationId) -> None:
        await self.backend.start(spec, incarnation, timeout=TIMEOUT)

    async def stop(self, sandbox: SandboxId, incarnation: IncarnationId) -> None:
        await self.backend.stop(sandbox, incarnation, grace=GRACE, timeout=TIMEOUT)

    async def next(self, sandbox: SandboxId) -> str:
        return self.backend.next_images[sandbox] or self.base


@dataclass(kw_only=True)
class ClusterWorld:
    backend: KubernetesBackend
    base: str
    image: ImageReference
    operator: FakeOperator | None = None
    """Where the cluster is in memory."""

    @property
    def images(self) -> RunningImages:
        return self.backend.images

    async def own(self) -> ImageReference:
        return self.image

    async def start(self, spec: SandboxSpec, incarnation: IncarnationId) -> None:
        await self.backend.start(spec, incarnation, timeout=TIMEOUT)

    async def stop(self, sandbox: SandboxId, incarnation: IncarnationId) -> None:
        await self.backend.stop(sandbox, incarnation, grace=GRACE, timeout=TIMEOUT)

    async def next(self, sandbox: SandboxId) -> str:
        status = await self._status(sandbox)
        assert status is not None
        return status.next_image

    async def _status(self, sandbox: SandboxId) -> PlacedStatus | None:
        placed = self.backend._mirror.get(sandbox)
        return None if placed is None or not placed.taken_up else placed.status


@pytest.fixture
async def memory_cluster() -> AsyncIterator[ClusterWorld]:
    kube, connector = FakeKube(), FakeAgentConnector()
    await kube.put("sandboxtemplates", {"metadata": {"name": "default"}, "spec": {"image": BASE_IMAGE}})
    backend = KubernetesBackend(
        api=kube,
        installation=Installation(instance="test", namespace_prefix="client-", template="default"),
        place=POD_PLACE,
        connector=connector,
        clock=SystemClock(),
    )
    async with FakeOperator(kube, connector).running() as operator:
        following = asyncio.create_task(backend.run())
        yield ClusterWorld(backend=backend, base=operator.base, image=an_image(), operator=operator)
        following.cancel()


@pytest.fixture
async def on_a_cluster(cluster_installation: ClusterInstallation) -> AsyncIterator[ClusterWorld]:
    installation = cluster_installation
    image = await own_image(installation.cluster.registry, installation.images["sandbox"], {"opt/mark": b"mine"})
    async with installation.client() as api:
        backend, _ = installation.backend(api)
        following = asyncio.create_task(backend.run())
        yield ClusterWorld(backend=backend, base=installation.images["sandbox"], image=ImageReference.parse(image))
        for observation in await backend.list():
            await backend.erase(observation.sandbox, timeout=TIMEOUT)
        following.cancel()


@pytest.fixture(params=["fake", "memory_cluster", pytest.param("on_a_cluster", marks=pytest.mark.cluster)])
def world(request: pytest.FixtureRequest) -> ImagesWorld:
    if request.param == "fake":
        backend = FakeBackend()
        return FakeWorld(backend=backend, images=FakeRunningImages(backend))
    made: ImagesWorld = request.getfixturevalue(request.param)
    return made


def an_incarnation() -> IncarnationId:
    return IncarnationId(make_id("inc", at=datetime.now(UTC), entropy=next(_numbers).to_bytes(10, "big")))


def a_spec(image: str = "") -> SandboxSpec:
    sandbox = SandboxId(make_id("sbx", at=datetime.now(UTC), entropy=next(_numbers).to_bytes(10, "big")))
    return SandboxSpec(
        sandbox=sandbox,
        client=ClientId("acme"),
        freelancer=FreelancerId("ada"),
        resources=TIER_RESOURCES[Tier.BASIC],
        image=image,
    )


async def comes_next(world: ImagesWorld, sandbox: SandboxId, image: str) -> None:
    async def so() -> bool:
        return await world.next(sandbox) == image

    await eventually(so, within=20)


async def test_a_sandbox_without_an_image_of_its_own_runs_from_the_base(world: ImagesWorld) -> None:
    spec, life = a_spec(), an_incarnation()
    await world.start(spec, life)

    assert str(await world.images.image(spec.sandbox, life, timeout=TIMEOUT)) == world.base


async def test_a_sandbox_runs_from_the_image_that_its_start_named(world: ImagesWorld) -> None:
    own = await world.own()
    spec, life = a_spec(str(own)), an_incarnation()
    await world.start(spec, life)

    assert await world.images.image(spec.sandbox, life, timeout=TIMEOUT) == own
    await comes_next(world, spec.sandbox, str(own))


async def test_the_next_image_leaves_what_runs_alone_and_is_what_the_next_pod_is_made_from(world: ImagesWorld) -> None:
    own = await world.own()
    spec, first, second = a_spec(), an_incarnation(), an_incarnation()
    await world.start(spec, first)

    for _ in range(2):
        await world.images.set_image(spec.sandbox, own, timeout=TIMEOUT)

    await comes_next(world, spec.sandbox, str(own))
    assert str(await world.images.image(spec.sandbox, first, timeout=TIMEOUT)) == world.base
    await world.start(replace(spec, image=str(own)), second)
    assert await world.images.image(spec.sandbox, second, timeout=TIMEOUT) == own


async def test_no_image_of_its_own_is_the_base_again(world: ImagesWorld) -> None:
    own = await world.own()
    spec, first, second = a_spec(str(own)), an_incarnation(), an_incarnation()
    await world.start(spec, first)

    await world.images.set_image(spec.sandbox, None, timeout=TIMEOUT)

    await comes_next(world, spec.sandbox, world.base)
    assert await world.images.image(spec.sandbox, first, timeout=TIMEOUT) == own
    await world.start(replace(spec, image=""), second)
    assert str(await world.images.image(spec.sandbox, second, timeout=TIMEOUT)) == world.base


async def test_what_does_not_run_has_no_image(world: ImagesWorld) -> None:
    spec, life = a_spec(), an_incarnation()
    await world.start(spec, life)
    with pytest.raises(UnavailableError):
        await world.images.image(spec.sandbox, an_incarnation(), timeout=TIMEOUT)
    await world.stop(spec.sandbox, life)

    with pytest.raises(UnavailableError):
        await world.images.image(spec.sandbox, life, timeout=TIMEOUT)
    with pytest.raises(UnavailableError):
        await world.images.image(a_spec().sandbox, life, timeout=TIMEOUT)


async def test_a_stopped_sandbox_can_be_given_its_next_image(world: ImagesWorld) -> None:
    own = await world.own()
    spec, life = a_spec(), an_incarnation()
    await world.start(spec, life)
    await world.stop(spec.sandbox, life)

    await world.images.set_image(spec.sandbox, own, timeout=TIMEOUT)

    await comes_next(world, spec.sandbox, str(own))


async def test_an_image_for_a_sandbox_that_has_no_place_is_success(world: ImagesWorld) -> None:
    await world.images.set_image(a_spec().sandbox, await world.own(), timeout=TIMEOUT)


async def test_the_base_is_what_a_sandbox_without_an_image_starts_from(world: ImagesWorld) -> None:
    async def known() -> bool:
        try:
            return str(await world.images.base()) == world.base
        except UnavailableError:
            return False

    await eventually(known, within=20)


# What the cluster alone promises.


async def test_an_image_that_is_named_by_a_tag_is_told_as_that(
    memory_cluster: ClusterWorld,
) -> None:
    assert memory_cluster.operator is not None
    memory_cluster.operator.base = "localhost:5000/sandboxd/sandbox:dev"
    spec, life = a_spec(), an_incarnation()
    await memory_cluster.start(spec, life)

    with pytest.raises(ImageUnnamedError, match="by digest, then stop and start") as caught:
        await memory_cluster.images.image(spec.sandbox, life, timeout=TIMEOUT)

    assert caught.value.metadata["image"] == "localhost:5000/sandboxd/sandbox:dev"


async def test_a_base_that_is_named_by_a_tag_or_not_known_is_told_as_that() -> None:
    kube = FakeKube()
    backend = KubernetesBackend(
        api=kube,
        installation=Installation(instance="test", namespace_prefix="client-", template="default"),
        place=POD_PLACE,
        connector=FakeAgentConnector(),
        clock=SystemClock(),
    )
    with pytest.raises(UnavailableError, match="template default is not known"):
        await backend.images.base()
    following = asyncio.create_task(backend.run())
    await kube.put("sandboxtemplates", {"metadata": {"name": "default"}, "spec": {"image": "localhost:5000/base:dev"}})

    async def told() -> bool:
        try:
            await backend.images.base()
        except ImageUnnamedError:
            return True
        except UnavailableError:
            return False
        return False

    await eventually(told, within=20)
    following.cancel()
