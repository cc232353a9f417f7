"""What is promised of a probe: held by the fake, by a cluster in memory, and by real pods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import pytest

from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.pod_place import POD_PLACE
from sandboxd.backends.kubernetes.refusals import PlacementError
from sandboxd.images.ports import ImageProbe, ImageReference
from sandboxd.kubeapi.errors import KubeUnavailableError
from sandboxd.manager.backend_port import SandboxSpec
from sandboxd.model.boot_step import BootStep
from sandboxd.model.cluster_probe import ProbeState, ProbeStatus
from sandboxd.model.cluster_status import Reason
from sandboxd.model.errors import DeadlineError, UnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.model.image_errors import ImageBrokenError
from tests.cluster.images import own_image
from tests.contract.test_backend import SystemClock
from tests.contract.test_running_images import a_spec, an_incarnation
from tests.eventually import eventually
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.cluster_operator import FakeOperator
from tests.fakes.images import FakeImageProbe, an_image
from tests.fakes.kube import FakeKube
from tests.fakes.prober import FakeProber
from tests.installation import ClusterInstallation

TIMEOUT = timedelta(seconds=120)
SHORT = timedelta(seconds=5)
pytestmark = pytest.mark.timeout(300)


class ProbeWorld(Protocol):
    @property
    def probe(self) -> ImageProbe: ...

    async def a_sandbox(self) -> SandboxId: ...

    async def good(self) -> ImageReference: ...

    async def bad(self) -> ImageReference:
        """One without a shell."""

    async def nothing_left(self) -> None: ...


@dataclass(kw_only=True)
class FakeWorld:
    probe: FakeImageProbe

    async def a_sandbox(self) -> SandboxId:
        return a_spec().sandbox

    async def good(self) -> ImageReference:
        return an_image()

    async def bad(self) -> ImageReference:
        self.probe.broken.add(an_image("b").digest)
        return an_image("b")

    async def nothing_left(self) -> None:
        return None


@dataclass(kw_only=True)
class MemoryWorld:
    backend: KubernetesBackend
    prober: FakeProber
    kube: FakeKube

    @property
    def probe(self) -> ImageProbe:
        return self.backend.probe

    async def a_sandbox(self) -> SandboxId:
        spec = a_spec()
        await self.backend.start(spec, an_incarnation(), timeout=TIMEOUT)
        return spec.sandbox

    async def good(self) -> ImageReference:
        return an_image()

    async def bad(self) -> ImageReference:
        broken = ProbeStatus(
            state=ProbeState.BROKEN, reason=Reason.IMAGE_BROKEN.value, step=BootStep.SHELL, message="/bin/sh: gone"
        )
        self.prober.verdicts[str(an_image("b"))] = broken
        return an_image("b")

    async def nothing_left(self) -> None:
        assert self.prober.left() == 0


@pytest.fixture
async def memory_cluster() -> AsyncIterator[MemoryWorld]:
    kube, connector = FakeKube(), FakeAgentConnector()
    backend = KubernetesBackend(
        api=kube,
        installation=Installation(instance="test", namespace_prefix="client-", template="default"),
        place=POD_PLACE,
        connector=connector,
        clock=SystemClock(),
    )
    async with FakeOperator(kube, connector).running(), FakeProber(kube).running() as prober:
        following = asyncio.create_task(backend.run())
        yield MemoryWorld(backend=backend, prober=prober, kube=kube)
        following.cancel()


@dataclass(kw_only=True)
class ClusterWorld:
    backend: KubernetesBackend
    installation: ClusterInstallation

    @property
    def probe(self) -> ImageProbe:
        return self.backend.probe

    async def a_sandbox(self) -> SandboxId:
        spec = a_spec()
        await self.start(spec)
        return spec.sandbox

    async def start(self, spec: SandboxSpec) -> None:
        await self.backend.start(spec, an_incarnation(), timeout=TIMEOUT)

    async def own(self, *gone: str, files: dict[str, bytes] | None = None) -> ImageReference:
        base, registry = self.installation.images["sandbox"], self.installation.cluster.registry
        return ImageReference.parse(await own_image(registry, base, files or {}, gone=gone))

    async def good(self) -> ImageReference:
        return await self.own(files={"opt/mark": b"mine"})

    async def bad(self) -> ImageReference:
        return await self.own("usr/bin/dash")

    async def nothing_left(self) -> None:
        namespace = f"{self.installation.instance}-acme"

        def gone() -> bool:
            kinds = "sandboxprobes.sandboxd.dev,pods"
            found = self.installation.kubectl("get", kinds, "-n", namespace, "-o", "name").split()
            return not [name for name in found if "probe-" in name]

        await eventually(gone, within=30, every=0.2)


@pytest.fixture
async def on_a_cluster(cluster_installation: ClusterInstallation) -> AsyncIterator[ClusterWorld]:
    async with cluster_installation.client() as api:
        backend, _ = cluster_installation.backend(api)
        following = asyncio.create_task(backend.run())
        yield ClusterWorld(backend=backend, installation=cluster_installation)
        for observation in await backend.list():
            await backend.erase(observation.sandbox, timeout=TIMEOUT)
        following.cancel()


@pytest.fixture(params=["fake", "memory_cluster", pytest.param("on_a_cluster", marks=pytest.mark.cluster)])
def world(request: pytest.FixtureRequest) -> ProbeWorld:
    if request.param == "fake":
        return FakeWorld(probe=FakeImageProbe())
    made: ProbeWorld = request.getfixturevalue(request.param)
    return made


async def test_an_image_that_boots_passes_and_nothing_of_its_probe_is_left(world: ProbeWorld) -> None:
    sandbox = await world.a_sandbox()

    for _ in range(2):
        await world.probe.probe(sandbox, await world.good(), timeout=TIMEOUT)

    await world.nothing_left()


async def test_an_image_that_does_not_boot_is_told_with_its_step_and_nothing_is_left(world: ProbeWorld) -> None:
    bad = await world.bad()

    with pytest.raises(ImageBrokenError, match="/bin/sh") as caught:
        await world.probe.probe(await world.a_sandbox(), bad, timeout=TIMEOUT)

    assert str(caught.value.metadata["image"]).endswith(bad.digest)
    await world.nothing_left()


# What is promised of the cluster's alone.


async def told(world: MemoryWorld, status: ProbeStatus) -> None:
    """Probe an image of which the operator says this."""
    world.prober.verdicts[str(an_image("c"))] = status
    await world.probe.probe(await world.a_sandbox(), an_image("c"), timeout=TIMEOUT)


def waiting(reason: Reason, *, step: BootStep | None = None, message: str = "as the cluster said") -> ProbeStatus:
    return ProbeStatus(state=ProbeState.WAITING, reason=reason.value, step=step, message=message)


async def test_a_probe_says_whose_image_it_is_and_goes_with_its_sandbox(memory_cluster: MemoryWorld) -> None:
    sandbox = await memory_cluster.a_sandbox()

    await memory_cluster.probe.probe(sandbox, an_image(), timeout=timedelta(seconds=33.3))

    (made,) = memory_cluster.prober.seen
    assert made["spec"] == {"sandbox": sandbox, "image": str(an_image()), "deadlineSeconds": 33}
    assert made["metadata"]["namespace"] == "client-acme"
    assert [owner["name"] for owner in made["metadata"]["ownerReferences"]] == [sandbox]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (waiting(Reason.QUOTA_EXCEEDED), "does not start"),
        (waiting(Reason.TEMPLATE_MISSING), "no SandboxTemplate"),
        (
            ProbeStatus(state=ProbeState.UNDECIDED, reason=Reason.POD_EVICTED.value, message="evicted"),
            "no end. evicted",
        ),
        (ProbeStatus(state=ProbeState.UNDECIDED, reason="SomethingNew", message="newer"), "no end. newer"),
    ],
)
async def test_what_says_nothing_of_the_image_is_no_verdict(
    memory_cluster: MemoryWorld, status: ProbeStatus, words: str
) -> None:
    with pytest.raises(PlacementError, match=words) as caught:
        await told(memory_cluster, status)

    assert caught.value.retry_after is not None
    assert caught.value.metadata["cause"] == status.reason
    await memory_cluster.nothing_left()


async def test_a_container_that_cannot_be_made_for_some_seconds_is_the_images_fault(
    memory_cluster: MemoryWorld,
) -> None:
    with pytest.raises(ImageBrokenError, match="not a directory") as caught:
        await told(
            memory_cluster,
            waiting(Reason.CONTAINER_FAILED, step=BootStep.CONTAINER, message="CreateContainerError: not a directory"),
        )

    assert caught.value.metadata["step"] == "container"


async def test_trouble_that_passes_is_waited_for(memory_cluster: MemoryWorld) -> None:
    memory_cluster.prober.verdicts[str(an_image())] = waiting(Reason.REGISTRY_UNAVAILABLE)
    sandbox = await memory_cluster.a_sandbox()
    probing = asyncio.create_task(memory_cluster.probe.probe(sandbox, an_image(), timeout=TIMEOUT))
    await eventually(lambda: memory_cluster.prober.left() == 1)

    await memory_cluster.prober.say(ProbeStatus(state=ProbeState.RUNNING, reason=Reason.STARTING.value))
    await memory_cluster.prober.say(ProbeStatus(state=ProbeState.BOOTED))

    await probing
    await memory_cluster.nothing_left()


async def test_a_probe_that_nobody_takes_up_ends_with_its_time(memory_cluster: MemoryWorld) -> None:
    memory_cluster.prober.down = True
    sandbox = await memory_cluster.a_sandbox()

    with pytest.raises(DeadlineError, match="has not taken it up"):
        await memory_cluster.probe.probe(sandbox, an_image(), timeout=SHORT)

    await memory_cluster.nothing_left()


async def test_a_probe_that_is_removed_meanwhile_says_nothing(memory_cluster: MemoryWorld) -> None:
    memory_cluster.prober.down = True
    sandbox = await memory_cluster.a_sandbox()
    probing = asyncio.create_task(memory_cluster.probe.probe(sandbox, an_image(), timeout=TIMEOUT))
    await eventually(lambda: memory_cluster.prober.left() == 1)

    async def removed() -> bool:
        await memory_cluster.prober.remove()
        return probing.done()

    await eventually(removed, within=10, every=0.1)

    with pytest.raises(PlacementError, match="was removed"):
        await probing


async def test_a_caller_that_gives_up_leaves_no_probe(memory_cluster: MemoryWorld) -> None:
    memory_cluster.prober.down = True
    sandbox = await memory_cluster.a_sandbox()
    probing = asyncio.create_task(memory_cluster.probe.probe(sandbox, an_image(), timeout=TIMEOUT))
    await eventually(lambda: memory_cluster.prober.left() == 1)

    probing.cancel()

    with pytest.raises(asyncio.CancelledError):
        await probing
    await memory_cluster.nothing_left()


async def test_a_sandbox_that_is_not_there_and_an_api_server_that_is_away_are_unavailable(
    memory_cluster: MemoryWorld,
) -> None:
    with pytest.raises(UnavailableError, match="is not in the cluster"):
        await memory_cluster.probe.probe(a_spec().sandbox, an_image(), timeout=TIMEOUT)
    sandbox = await memory_cluster.a_sandbox()
    memory_cluster.kube.away = KubeUnavailableError("connection refused")

    with pytest.raises(UnavailableError):
        await memory_cluster.probe.probe(sandbox, an_image(), timeout=TIMEOUT)


async def test_too_little_time_makes_no_probe(memory_cluster: MemoryWorld) -> None:
    sandbox = await memory_cluster.a_sandbox()

    with pytest.raises(DeadlineError, match="no time left"):
        await memory_cluster.probe.probe(sandbox, an_image(), timeout=timedelta(seconds=1))

    assert memory_cluster.prober.seen == []
