"""The main job on a cluster: create, a conversation with the real CLI in a pod, pause, resume, and what stays."""

from __future__ import annotations

import pytest

from sandboxd.v1 import sandbox_pb2, stream_pb2
from tests.cluster.stack import ClusterStack, sandbox_id
from tests.e2e.stack import Transcript
from tests.eventually import eventually

pytestmark = pytest.mark.timeout(300)


async def test_a_session_in_a_pod_writes_a_file_that_outlives_pause_and_resume_and_goes_on(stack: ClusterStack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(display_name="first", model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            tools = await seen.turn("fake:multi(path=notes.txt; content=hello; cmd=id -un; cmd2=pwd)")
            assert tools.stop_reason == stream_pb2.STOP_REASON_END_TURN
        assert stack.inside(sandbox, "cat", "/workspace/notes.txt") == "hello"
        assert stack.inside(sandbox, "stat", "-c", "%U", "/workspace/notes.txt").strip() == "gemini"

        paused = await client.pause(sandbox.name)

        assert paused.state == sandbox_pb2.SANDBOX_STATE_PAUSED
        assert stack.pod(sandbox) == {}
        assert stack.resource(sandbox)["status"]["state"] == "Stopped"

        resumed = await client.resume(sandbox.name)

        assert (resumed.state, resumed.incarnations) == (sandbox_pb2.SANDBOX_STATE_ACTIVE, 2)
        assert stack.inside(sandbox, "cat", "/workspace/notes.txt") == "hello"
        sessions = [session async for session in client.sessions(sandbox.name)]
        assert len(sessions) == 1
        async with client.stream(sandbox.name, session=sessions[0].name, after_sequence=-1) as stream:
            again = Transcript(stream=stream)
            said = await again.turn("fake:say(text=still here)")
        assert said.stop_reason == stream_pb2.STOP_REASON_END_TURN
        assert "still here" in again.text

        kept = await client.terminate(sandbox.name)

    assert sandbox_id(sandbox) in str(kept)
    assert stack.resource(sandbox) == {}
    claims = stack.kubectl("get", "pvc", "-l", "sandboxd.dev/kept=true", "-o", "name").split()
    assert len([claim for claim in claims if sandbox_id(sandbox) in claim]) == 2


async def test_a_session_goes_on_after_its_pod_was_deleted_by_hand(stack: ClusterStack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("fake:multi(path=notes.txt; content=mine; cmd=true)")
            uid = stack.pod(sandbox)["metadata"]["uid"]

            stack.delete_pod(sandbox)

            async def lost() -> bool:
                return (await client.get(sandbox.name)).state_reason != ""

            await eventually(lost, within=60, what="the loss is seen")
            said = await seen.turn("fake:say(text=and on)")

        assert said.stop_reason == stream_pb2.STOP_REASON_END_TURN
        assert "and on" in seen.text
        seen.assert_whole()
        after = await client.get(sandbox.name)
        assert (after.state, after.incarnations) == (sandbox_pb2.SANDBOX_STATE_ACTIVE, 2)
        assert stack.pod(sandbox)["metadata"]["uid"] != uid
        assert stack.inside(sandbox, "cat", "/workspace/notes.txt") == "mine"
