"""A node that is not heard of: what goes on, what is told, who waits, and that everything converges when it is back.

The development cluster's kubelet is ended; its containers run on, as those of a node do that is cut off. Nothing else
on this cluster gets a pod for three minutes.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import pytest

from devcluster.places import NODE, Places
from devcluster.processes import name_of, ours, stop
from sandboxd.ctl.backoff import RetryPolicy
from sandboxd.ctl.errors import ApiError
from sandboxd.v1 import sandbox_pb2, stream_pb2
from tests.cluster.stack import ClusterStack, a_cluster_stack, sandbox_id
from tests.e2e.stack import Transcript
from tests.eventually import eventually
from tests.installation import ClusterInstallation

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

TOLERATED_SECONDS: Final = 30
UNHEARD_SECONDS: Final = 120
"""Until the cluster says that a node is not heard of; it waits for 40 to 50 s."""
ONCE: Final = RetryPolicy(budget=timedelta(0))
PATIENT: Final = 100.0
"""Seconds: longer than the service waits for a pod's end before it says so."""


@pytest.fixture
def places(own_installation: ClusterInstallation) -> Places:
    if own_installation.cluster.places is None:
        pytest.skip("only the development cluster's kubelet may be ended")
    return own_installation.cluster.places


@pytest.fixture
async def stack(own_installation: ClusterInstallation, postgres_url: str) -> AsyncIterator[ClusterStack]:
    tolerations = [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": TOLERATED_SECONDS,
        }
        for taint in ("unreachable", "not-ready")
    ]
    own_installation.apply_template(tolerations=tolerations)
    async with a_cluster_stack(own_installation, postgres_url) as made:
        yield made


@contextmanager
def no_kubelet(places: Places) -> Iterator[None]:
    """End the kubelet, and start it again however this ends."""
    stop([found for found in ours(places) if name_of(found) == "kubelet"], gently=False)
    try:
        yield
    finally:
        command = [sys.executable, "-m", "devcluster", "up"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr


def node_is_ready(stack: ClusterStack) -> bool:
    node = json.loads(stack.installation.kubectl("get", "node", NODE, "-o", "json"))
    return any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"]["conditions"])


def status(stack: ClusterStack, sandbox: sandbox_pb2.Sandbox) -> dict[str, Any]:
    found: dict[str, Any] = stack.resource(sandbox).get("status", {})
    return found


def condition(stack: ClusterStack, sandbox: sandbox_pb2.Sandbox, kind: str) -> tuple[str, str]:
    found = {one["type"]: one for one in status(stack, sandbox)["conditions"]}[kind]
    return found["status"], found["reason"]


async def test_a_node_that_is_gone_has_its_outcomes_and_everything_converges_when_it_is_back(
    stack: ClusterStack, places: Places
) -> None:
    async with stack.client() as client, stack.client(retry=ONCE) as hasty:
        used, ended, paused = [await client.create(model="gemini-2.5-flash") for _ in range(3)]
        for each in (used, ended, paused):
            stack.inside(each, "sh", "-c", "echo mine > /workspace/work.txt && sync")
        uids = {each.name: stack.pod(each)["metadata"]["uid"] for each in (used, ended, paused)}
        async with client.stream(used.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("fake:say(text=before )")

            with no_kubelet(places):
                await eventually(lambda: not node_is_ready(stack), within=UNHEARD_SECONDS, every=0.5)
                await eventually(lambda: condition(stack, used, "Ready") == ("False", "NodeLost"), within=20)
                during = await seen.turn("fake:say(text=during )")

                # The agent is reached, and nobody has given the pod up yet.
                assert during.stop_reason == stream_pb2.STOP_REASON_END_TURN
                assert condition(stack, used, "Degraded")[0] == "True"
                print("the node is not heard of; a turn was taken meanwhile", flush=True)

                await eventually(
                    lambda: all(status(stack, each)["reason"] == "NodeLost" for each in (used, ended, paused)),
                    within=TOLERATED_SECONDS + 60,
                    every=0.5,
                )
                print("the pods are given up", flush=True)
                events = stack.kubectl("get", "events", f"--field-selector=involvedObject.name={sandbox_id(used)}")
                assert "NodeLost" in events

                assert (await client.pause(paused.name)).state == sandbox_pb2.SANDBOX_STATE_PAUSED
                calls = (hasty.resume(paused.name, timeout=PATIENT), hasty.terminate(ended.name, timeout=PATIENT))
                refused = await asyncio.gather(*calls, return_exceptions=True)
                print(f"refused meanwhile: {[*map(str, refused)]}", flush=True)
                words = ("The pod of the former incarnation is ending", "its pod has not ended")
                assert all(
                    isinstance(one, ApiError) and said in str(one) for one, said in zip(refused, words, strict=True)
                )
                states = [(await client.get(each.name)).state for each in (paused, ended)]
                assert states == [sandbox_pb2.SANDBOX_STATE_FAILED, sandbox_pb2.SANDBOX_STATE_TERMINATING]

                for each in (used, ended, paused):  # never a second one beside it
                    pod = stack.pod(each)
                    assert (pod["metadata"]["uid"], "deletionTimestamp" in pod["metadata"]) == (uids[each.name], True)
            print("the kubelet runs again", flush=True)

            await eventually(
                lambda: (
                    not {stack.pod(each).get("metadata", {}).get("uid") for each in (used, ended, paused)}
                    & set(uids.values())
                ),
                within=120,
                every=0.5,
            )
            after = await seen.turn("fake:say(text=after)")
            assert after.stop_reason == stream_pb2.STOP_REASON_END_TURN
            assert seen.text == "before during after"
            seen.assert_whole()
        resumed = await client.resume(paused.name)

        async def terminated() -> bool:
            return (await client.get(ended.name)).state == sandbox_pb2.SANDBOX_STATE_TERMINATED

        await eventually(terminated, within=120, every=0.5, what="recovery finishes what waits")

    assert resumed.state == sandbox_pb2.SANDBOX_STATE_ACTIVE
    for each in (used, paused):
        assert stack.inside(each, "cat", "/workspace/work.txt").strip() == "mine"
    claims = json.loads(stack.kubectl("get", "pvc", "-l", "sandboxd.dev/kept=true", "-o", "json"))["items"]
    assert len(claims) == 2
