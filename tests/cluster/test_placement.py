"""Where sandboxes go and what is there before them: images in advance, on either way of the agent into the pod."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

import pytest

from sandboxd.ctl.client import Client
from sandboxd.ctl.connection import new_request_id
from sandboxd.operator.prepull import images_name
from sandboxd.v1 import sandbox_pb2 as pb
from sandboxd.v1 import sandbox_pb2_grpc, stream_pb2
from tests.cluster.images import push_variant
from tests.cluster.stack import ClusterStack, a_cluster_stack
from tests.e2e.stack import Transcript
from tests.eventually import eventually
from tests.installation import ClusterInstallation

pytestmark = pytest.mark.timeout(300)

MODEL = "gemini-2.5-flash"


@pytest.fixture
async def stack(own_installation: ClusterInstallation, postgres_url: str) -> AsyncIterator[ClusterStack]:
    """Not started: each test names its template first."""
    if not own_installation.prepull:
        own_installation.prepull = True
        await asyncio.to_thread(own_installation.stop_operator)
        await asyncio.to_thread(own_installation.start_operator)
    async with a_cluster_stack(own_installation, postgres_url, start=False) as made:
        yield made


async def unknown_images(installation: ClusterInstallation, word: str) -> Mapping[str, str]:
    """Images of this checkout under digests that no node has."""
    registry, word = installation.cluster.registry, f"{installation.instance}-{word}"
    images = {name: await push_variant(registry, installation.images[name], word) for name in ("sandbox", "agent")}
    return {"image": images["sandbox"], "agentImage": images["agent"]}


async def create(client: Client) -> pb.CreateResponse:
    stub = sandbox_pb2_grpc.SandboxServiceStub(client.connection.channel)
    request = pb.CreateRequest(request_id=new_request_id(), sandbox=pb.Sandbox(tier=pb.TIER_BASIC, model=MODEL))
    answer: pb.CreateResponse = await client.connection.call(stub.Create, request, timeout=120)
    return answer


@pytest.mark.parametrize("delivery", ["ImageVolume", "InitCopy"])
async def test_a_templates_images_are_on_the_node_before_its_first_sandbox(stack: ClusterStack, delivery: str) -> None:
    installation = stack.installation
    name = f"{installation.instance}-{delivery.lower()}"
    installation.apply_template(name, agentDelivery=delivery, **await unknown_images(installation, delivery))

    def shown() -> list[str]:
        return installation.kubectl("get", "sbxt", name, "--no-headers").split()

    await eventually(lambda: "Pulled" in shown(), within=120, every=0.2)
    assert [word for word in shown() if word.isdigit()] == ["1", "1"], "nodes that fit, and those that have them"
    stack.settings["SANDBOXD_KUBERNETES_TEMPLATE"] = name
    await asyncio.gather(stack.start("gateway"), stack.start("serve"))
    async with stack.client() as client:
        made = await create(client)
        pod = stack.pod(made.sandbox)
        async with client.stream(made.sandbox.name) as stream:
            said = await Transcript(stream=stream).turn("fake:say(text=hello)")

    assert made.startup.path == pb.START_PATH_LOCAL_IMAGE
    assert said.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert [one["name"] for one in pod["spec"].get("initContainers", [])] == (
        ["agent-copy"] if delivery == "InitCopy" else []
    )
    installation.kubectl("delete", "sbxt", name)
    await eventually(lambda: not daemon_set(installation, name), within=60, every=0.2)


async def test_without_that_the_first_sandbox_of_a_template_pulls_them(stack: ClusterStack) -> None:
    installation = stack.installation
    name = f"{installation.instance}-late"
    images = await unknown_images(installation, "late")
    installation.apply_template(name, f"{installation.instance}-other", **images)
    try:
        stack.settings["SANDBOXD_KUBERNETES_TEMPLATE"] = name
        await asyncio.gather(stack.start("gateway"), stack.start("serve"))
        async with stack.client() as client:
            made = await create(client)
    finally:
        installation.kubectl("delete", "sbxt", name)

    assert made.startup.path == pb.START_PATH_PULL
    assert not daemon_set(installation, name)


def daemon_set(installation: ClusterInstallation, template: str) -> Mapping[str, object]:
    namespace = f"{installation.instance}-system"
    found = installation.kubectl(
        "get", "daemonset", images_name(template), "-n", namespace, "-o", "json", "--ignore-not-found"
    )
    answer: Mapping[str, object] = json.loads(found) if found else {}
    return answer
