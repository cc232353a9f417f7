"""Sandboxes that start from an image of their own, in real pods: what starts, what does not, and what is told of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.refusals import PlacementError
from sandboxd.images.ports import ImageReference
from sandboxd.manager.backend_port import SandboxSpec
from sandboxd.model.cluster import pod_of
from sandboxd.model.cluster_status import ConditionType, PlacedState, Reason
from sandboxd.model.image_errors import ImageBrokenError
from sandboxd.model.startup import StartPath
from tests.cluster.images import own_image, push
from tests.cluster.operator_stage import Stage, a_stage, an_incarnation
from tests.contract.test_running_images import a_spec
from tests.eventually import eventually
from tests.installation import ClusterInstallation
from tests.kube import Cluster, KubectlError
from tests.registry_front import Front, RealRegistry, a_front

S, R = PlacedState, Reason
TIMEOUT = timedelta(seconds=90)
GRACE = timedelta(seconds=1)
REPOSITORY = "acme/gemini-cli-user-ada"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def stage(cluster: Cluster, instance: str, tmp_path: Path) -> Stage:
    return await a_stage(cluster, instance, tmp_path)


async def test_the_next_pod_takes_another_image_and_kubectl_tells_of_both(stage: Stage) -> None:
    own = await push(stage.cluster.registry, REPOSITORY, {"bin/mark": stage.instance.encode()})
    sandbox, spec = stage.a_sandbox()

    async with stage.operator():
        await stage.write(sandbox, spec)
        first = await stage.reaches(sandbox, S.RUNNING)
        await stage.write(sandbox, replace(spec, image=own))

        async def told() -> bool:
            return (await stage.status(sandbox)).next_image == own

        await eventually(told, within=30, every=0.1)
        shown = (await stage.kubectl("get", "sbx", "-o", "wide")).splitlines()
        assert {"IMAGE", "NEXT"} <= set(shown[0].split())
        assert {first.image, own} <= set(shown[1].split())
        same = await stage.status(sandbox)
        assert (same.pod_uid, same.image, same.state) == (first.pod_uid, "localhost:5000/pause:1", S.RUNNING)
        # The pod's node takes it away; what comes next is made from its own image.
        await stage.kubectl("delete", "pod", pod_of(sandbox), "--wait=false")
        await stage.reaches(sandbox, S.FAILED, R.POD_DELETED)
        after = replace(spec, image=own, incarnation=an_incarnation())
        await stage.write(sandbox, after)
        status = await stage.reaches(sandbox, S.RUNNING, after.incarnation)
        pod = await stage.get("pod", pod_of(sandbox))

    assert (status.image, status.next_image) == (own, own)
    container = pod["spec"]["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == (own, "IfNotPresent")
    assert container["command"][0] == "/opt/agent/lib64/ld-linux-x86-64.so.2"


async def test_another_clients_image_makes_nothing_and_ends_nothing(stage: Stage) -> None:
    theirs = await push(stage.cluster.registry, "globex/gemini-cli-user-ada", {"bin/mark": b"theirs"})
    sandbox, spec = stage.a_sandbox(image=theirs)
    other, runs = stage.a_sandbox()

    async with stage.operator():
        await stage.write(sandbox, spec)
        await stage.write(other, runs)
        refused = await stage.reaches(sandbox, S.PENDING, R.IMAGE_FOREIGN)
        first = await stage.reaches(other, S.RUNNING)
        await stage.write(other, replace(runs, image=theirs))

        async def degraded() -> bool:
            found = (await stage.status(other)).find(ConditionType.DEGRADED)
            return found is not None and found.reason is R.IMAGE_FOREIGN

        await eventually(degraded, within=30, every=0.1)
        still = await stage.status(other)

        assert "not one of client acme" in refused.message
        assert not await stage.exists("sts", sandbox)
        assert (still.state, still.pod_uid) == (S.RUNNING, first.pod_uid)
        assert "ImageForeign" in await stage.told(sandbox)


@pytest.mark.parametrize(
    ("image", "freelancer", "words"),
    [
        ("localhost:5000/acme/gemini-cli-user-ada:latest", "ada", "spec.image"),
        (f"gemini-cli-user-ada@sha256:{'0' * 64}", "ada", "spec.image"),
        (f"localhost:5000/acme/gemini-cli-user-ada@sha256:{'0' * 64}", "POOL", "made from its template's image"),
    ],
    ids=["a tag", "no registry", "a member of a pool"],
)
async def test_the_api_server_refuses_what_names_no_image_of_a_freelancer(
    stage: Stage, image: str, freelancer: str, words: str
) -> None:
    sandbox, spec = stage.a_sandbox(image=image, freelancer=freelancer)

    with pytest.raises(KubectlError, match=words):
        await stage.write(sandbox, spec)


@dataclass(kw_only=True)
class Place:
    """A backend as `serve` has it, on the real images."""

    backend: KubernetesBackend
    installation: ClusterInstallation

    @property
    def base(self) -> str:
        return self.installation.images["sandbox"]

    async def own(self, *gone: str, **files: bytes) -> str:
        """An image of the freelancer's, made of the base by one layer; names of files have `__` for a slash."""
        content = {name.replace("__", "/"): text for name, text in files.items()}
        return await own_image(self.installation.cluster.registry, self.base, content, gone=gone)

    def inside(self, spec: SandboxSpec, *command: str) -> str:
        return self.installation.kubectl(
            "exec", "-n", f"{self.installation.instance}-acme", pod_of(spec.sandbox), "-c", "sandbox", "--", *command
        )

    def pods(self) -> str:
        return self.installation.kubectl("get", "pods", "-n", f"{self.installation.instance}-acme", "-o", "name")


@pytest.fixture
async def place(cluster_installation: ClusterInstallation) -> AsyncIterator[Place]:
    async with cluster_installation.client() as api:
        backend, _ = cluster_installation.backend(api)
        following = asyncio.create_task(backend.run())
        yield Place(backend=backend, installation=cluster_installation)
        for observation in await backend.list():
            await backend.erase(observation.sandbox, timeout=TIMEOUT)
        following.cancel()


async def test_what_was_installed_is_there_and_after_an_eviction_again(place: Place) -> None:
    own = await place.own(usr__local__bin__mine=b"#!/bin/sh\necho mine\n")
    spec, first = a_spec(own), an_incarnation()

    await place.backend.start(spec, first, timeout=TIMEOUT)
    assert place.inside(spec, "mine") == "mine\n"
    place.installation.kubectl(
        "delete", "pod", "-n", f"{place.installation.instance}-acme", pod_of(spec.sandbox), "--wait=false"
    )

    async def gone() -> bool:
        return not (await place.backend.observe(spec.sandbox)).running

    await eventually(gone, within=60, every=0.2)
    second = an_incarnation()
    await place.backend.start(spec, second, timeout=TIMEOUT)

    assert place.inside(spec, "mine") == "mine\n"
    assert await place.backend.images.image(spec.sandbox, second, timeout=TIMEOUT) == ImageReference.parse(own)


@pytest.mark.parametrize("gone", ["bin/sh", "usr/lib/x86_64-linux-gnu/libc.so.6"])
async def test_the_agent_answers_also_where_the_images_own_programs_cannot_run(place: Place, gone: str) -> None:
    """So a start does not find it: the probe before it does (tests/cluster/test_image_probe.py)."""
    path = "usr/bin/dash" if gone == "bin/sh" else gone

    await place.backend.start(a_spec(await place.own(path)), an_incarnation(), timeout=TIMEOUT)


async def test_an_image_that_is_gone_is_told_soon_and_the_base_starts_in_its_place(place: Place) -> None:
    gone = f"{(await place.own()).rpartition('@')[0]}@sha256:{'e' * 64}"
    spec = a_spec(gone)
    began = time.monotonic()

    with pytest.raises(ImageBrokenError, match=r"does not have it \(step pull\)") as caught:
        await place.backend.start(spec, an_incarnation(), timeout=TIMEOUT)
    told = time.monotonic()
    await place.backend.start(replace(spec, image=""), an_incarnation(), timeout=TIMEOUT)
    up = time.monotonic()

    assert caught.value.metadata == {"sandbox": spec.sandbox, "image": gone, "step": "pull"}
    assert up - began < 30, f"told after {told - began:.1f} s, the base was up {up - told:.1f} s later"


async def test_the_base_starts_while_the_pod_of_an_image_that_is_gone_is_stuck(place: Place) -> None:
    gone = f"{(await place.own()).rpartition('@')[0]}@sha256:{'d' * 64}"
    spec = a_spec(gone)
    starting = asyncio.create_task(place.backend.start(spec, an_incarnation(), timeout=TIMEOUT))

    async def stuck() -> bool:
        return pod_of(spec.sandbox) in place.pods()

    await eventually(stuck, within=60, every=0.1)
    await place.backend.images.set_image(spec.sandbox, None, timeout=TIMEOUT)
    second = an_incarnation()
    await place.backend.start(replace(spec, image=""), second, timeout=TIMEOUT)

    assert str(await place.backend.images.image(spec.sandbox, second, timeout=TIMEOUT)) == place.base
    with pytest.raises(Exception, match="restarted|does not have it"):
        await starting


async def test_an_image_whose_mount_point_is_a_file_is_broken_at_the_container(place: Place) -> None:
    spec = a_spec(await place.own(workspace=b"a file"))

    with pytest.raises(ImageBrokenError, match=r"step container") as caught:
        await place.backend.start(spec, an_incarnation(), timeout=TIMEOUT)

    assert "dst=/workspace" in caught.value.message
    await place.backend.start(replace(spec, image=""), an_incarnation(), timeout=TIMEOUT)


async def test_a_layer_that_no_node_can_unpack_is_told_as_that(place: Place) -> None:
    """It has a file and the mark of its deletion."""
    spec = a_spec(await place.own("opt/twice", opt__twice=b"once"))

    with pytest.raises(ImageBrokenError, match=r"step unpack"):
        await place.backend.start(spec, an_incarnation(), timeout=TIMEOUT)

    await place.backend.start(replace(spec, image=""), an_incarnation(), timeout=TIMEOUT)


@pytest.fixture
async def front(cluster: Cluster) -> AsyncIterator[Front]:
    """The registry under an address of the test's own, which can go away."""
    registry = RealRegistry(address=cluster.registry, root=Path("/nonexistent"))
    async with a_front(registry) as made:
        yield made


async def test_a_registry_that_is_away_breaks_no_image_and_a_node_that_has_it_needs_none(
    place: Place, front: Front
) -> None:
    there = (await place.own(opt__there=place.installation.instance.encode())).replace(
        f"localhost:{place.installation.cluster.registry.rpartition(':')[2]}",
        f"localhost:{front.address.rpartition(':')[2]}",
    )
    absent = (
        f"{there.rpartition('@')[0]}@"
        + (await place.own(opt__absent=place.installation.instance.encode())).rpartition("@")[2]
    )
    spec, other = a_spec(there), a_spec(absent)
    first, second = an_incarnation(), an_incarnation()
    await place.backend.start(spec, first, timeout=TIMEOUT)
    pulled = place.backend.startup(first)
    await place.backend.stop(spec.sandbox, first, grace=GRACE, timeout=TIMEOUT)
    before = len(front.seen)

    await front.cut()
    await place.backend.start(spec, second, timeout=TIMEOUT)
    with pytest.raises(PlacementError) as caught:
        await place.backend.start(other, an_incarnation(), timeout=TIMEOUT)
    await front.restore()
    await place.backend.start(other, an_incarnation(), timeout=TIMEOUT)

    assert before > 0
    local = place.backend.startup(second)
    assert pulled is not None
    assert local is not None
    assert (pulled.path, local.path) == (StartPath.PULL, StartPath.LOCAL)
    assert caught.value.metadata["cause"] == R.REGISTRY_UNAVAILABLE.value
    assert "connection refused" in caught.value.message
