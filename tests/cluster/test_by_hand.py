"""What somebody does to resources by kubectl where admission is off: no files are lost, nothing runs twice."""

from __future__ import annotations

import json

import pytest

from sandboxd.ctl.client import Client
from sandboxd.v1 import sandbox_pb2, stream_pb2
from tests.cluster.stack import ClusterStack, sandbox_id
from tests.e2e.stack import Transcript
from tests.eventually import eventually

pytestmark = pytest.mark.timeout(240)

ANOTHER = "inc-01jd0000000000000000000000"


def write(stack: ClusterStack, sandbox: sandbox_pb2.Sandbox, **spec: str) -> None:
    body = json.dumps({"spec": spec})
    stack.kubectl("patch", "sandboxes.sandboxd.dev", sandbox_id(sandbox), "--type=merge", f"-p={body}")


async def is_lost(client: Client, sandbox: sandbox_pb2.Sandbox) -> None:
    async def noticed() -> bool:
        return (await client.get(sandbox.name)).state_reason != ""

    await eventually(noticed, within=60, every=0.2)


async def assert_works(stack: ClusterStack, seen: Transcript, sandbox: sandbox_pb2.Sandbox, *, lives: int) -> None:
    """The next prompt is answered by the one pod there is, and the files are there."""
    assert (await seen.turn("fake:say(text=on )")).stop_reason == stream_pb2.STOP_REASON_END_TURN
    pod = stack.pod(sandbox)
    async with stack.client() as client:
        found = await client.get(sandbox.name)
    assert found.incarnations == lives
    assert pod["metadata"]["annotations"]["sandboxd.dev/incarnation"] == found.incarnation
    assert stack.inside(sandbox, "cat", "/workspace/work.txt").strip() == "mine"


async def test_nothing_that_is_written_by_hand_loses_files_or_runs_a_sandbox_twice(stack: ClusterStack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        stack.inside(sandbox, "sh", "-c", "echo mine > /workspace/work.txt && sync")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("fake:say(text=before )")

            write(stack, sandbox, mode="Stopped")
            await is_lost(client, sandbox)
            await assert_works(stack, seen, sandbox, lives=2)

            write(stack, sandbox, incarnation=ANOTHER)
            await is_lost(client, sandbox)
            await assert_works(stack, seen, sandbox, lives=3)

            stack.kubectl("delete", "sandboxes.sandboxd.dev", sandbox_id(sandbox), "--wait=true")
            await is_lost(client, sandbox)
            await assert_works(stack, seen, sandbox, lives=4)

            await client.pause(sandbox.name)
            write(stack, sandbox, mode="Running")
            stray = stack.resource(sandbox)["spec"]["incarnation"]
            await stack.reports('"kind": "incarnation_unknown"', f'"name": "{stray}"')
            assert (await client.get(sandbox.name)).state == sandbox_pb2.SANDBOX_STATE_PAUSED
            await client.resume(sandbox.name)
            await assert_works(stack, seen, sandbox, lives=5)
            seen.assert_whole()
