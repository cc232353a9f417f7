"""Memory ends in a sandbox: a process of the freelancer goes and the agent stays; and where all goes, work goes on."""

from __future__ import annotations

from typing import Final

import pytest

from sandboxd.v1 import sandbox_pb2, stream_pb2
from tests.cluster.stack import ClusterStack, sandbox_id
from tests.e2e.stack import Transcript
from tests.eventually import eventually

pytestmark = pytest.mark.timeout(300)

GREEDY: Final = "python3 -c 'x = bytearray(4 << 30)'; echo ended $? and the shell lives\n"
CROWD: Final = """
import os, time
for number in range(400):
    if os.fork() == 0:
        held = bytearray(b"x" * (8 << 20))
        time.sleep(120)
time.sleep(120)
"""
"""Each of them is smaller than the agent: the kernel takes whoever has the highest score."""


async def test_a_process_that_takes_all_memory_is_killed_and_agent_and_session_go_on(stack: ClusterStack) -> None:
    if stack.installation.cluster.places is None:
        pytest.skip("only of the development cluster it is known that an OOM kills one process (singleProcessOOMKill)")
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        uid = stack.pod(sandbox)["metadata"]["uid"]
        stack.inside(sandbox, "sh", "-c", f"cat > /workspace/greedy.sh <<'END'\n{GREEDY}END")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("fake:shell(cmd=sh greedy.sh)")
            after = await seen.turn("fake:say(text=still here)")
        found = await client.get(sandbox.name)

    told = "".join(event.tool_output.text for event in seen.events if event.HasField("tool_output"))
    assert "ended 137 and the shell lives" in told
    assert after.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert (found.state, found.incarnations) == (sandbox_pb2.SANDBOX_STATE_ACTIVE, 1)
    pod = stack.pod(sandbox)
    assert (pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]) == (uid, 0)


async def test_a_container_that_the_kernel_kills_ends_the_incarnation_and_files_and_session_go_on(
    stack: ClusterStack,
) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        stack.inside(sandbox, "sh", "-c", "echo mine > /workspace/work.txt && sync")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("fake:say(text=before )")
            stack.inside(sandbox, "sh", "-c", "echo 1000 > /proc/1/oom_score_adj")
            stack.inside(sandbox, "python3", "-c", CROWD, check=False)

            async def told() -> bool:
                events = stack.kubectl("get", "events", f"--field-selector=involvedObject.name={sandbox_id(sandbox)}")
                assert "OutOfMemory" in events, stack.resource(sandbox)["status"]
                return True

            async def lost() -> bool:
                return (await client.get(sandbox.name)).state_reason != ""

            await eventually(told, within=60, every=0.5)
            # Until the service has seen it, a prompt is the ended life's, whose turns end as interrupted.
            await eventually(lost, within=60, every=0.2, what="the loss is seen")
            after = await seen.turn("fake:say(text=and after)")
        found = await client.get(sandbox.name)

    assert after.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert seen.text == "before and after"
    seen.assert_whole()
    assert (found.state, found.incarnations) == (sandbox_pb2.SANDBOX_STATE_ACTIVE, 2)
    assert stack.inside(sandbox, "cat", "/workspace/work.txt").strip() == "mine"
