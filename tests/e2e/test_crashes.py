"""Killed anywhere: the client that comes back has every event once, the prompt was paid once, the next prompt works."""

from __future__ import annotations

import asyncio

import pytest

from sandboxd.v1 import sandbox_pb2, stream_pb2
from tests.e2e.conftest import StackMaker
from tests.e2e.stack import Stack, Transcript
from tests.eventually import eventually

pytestmark = pytest.mark.timeout(300)

SLOW = "fake:slow(chunks=8; delay=0.4)"
ANSWER = "".join(f"chunk {number} of 8. " for number in range(1, 9))


async def test_a_session_thinks_runs_tools_answers_and_every_token_is_billed(stack: Stack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(display_name="calm", model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            thought = await seen.turn("fake:think")
            tools = await seen.turn("fake:multi(path=notes.txt; content=hello; cmd=cat notes.txt)")
        rows = await stack.ledger(client, sandbox.name)

    seen.assert_whole()
    assert thought.stop_reason == tools.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert thought.thoughts_tokens == 33
    assert seen.kinds().count("tool_call") == seen.kinds().count("tool_output") == 2
    assert any("hello" in event.tool_output.text for event in seen.events if event.HasField("tool_output"))
    billed = [request for request in stack.model.requests if request.get("usage")]
    assert len(rows) == len(stack.model.requests)
    assert sum(row.tokens.total for row in rows) == sum(request["usage"]["totalTokenCount"] for request in billed)
    assert thought.total_tokens + tools.total_tokens == sum(row.tokens.total for row in rows)
    assert all(row.turn for row in rows)


@pytest.mark.parametrize("at", ["waiting", "text"])
async def test_the_service_is_killed_in_the_middle_of_a_turn(stack: Stack, at: str) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            stream.prompt(SLOW)
            await seen.until("turn_started" if at == "waiting" else "text")

            await stack.restart("serve")
            completed = (await seen.until("turn_completed")).turn_completed
            again = await seen.turn("fake:say(text=still here)")

    seen.assert_whole()
    assert completed.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert seen.text == ANSWER + "still here"
    assert again.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert [text for text in stack.paid if text == SLOW] == [SLOW]


@pytest.mark.parametrize(
    "failpoint",
    [
        "conversation.after_acquire=exit9",
        "conversation.process_planned=exit9",
        "conversation.process_started=exit9",
        *(f"conversation.{where}_append=exit9@{number}" for number in (1, 2, 4, 8) for where in ("before", "after")),
    ],
)
async def test_the_service_dies_at_a_step_of_a_turn(postgres_url: str, make_stack: StackMaker, failpoint: str) -> None:
    async with make_stack(postgres_url, failpoints=failpoint) as stack, stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            stream.prompt("fake:text(chunks=3; delay=0.2)")
            reading = asyncio.create_task(seen.until("turn_completed"))

            await stack.died("serve")
            await stack.start("serve")
            completed = (await reading).turn_completed
            await seen.turn("fake:say(text= next)")

    seen.assert_whole()
    assert completed.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert seen.text == "chunk 1 of 3. chunk 2 of 3. chunk 3 of 3. next"
    assert len([text for text in stack.paid if text.startswith("fake:text")]) == 1


async def test_a_turn_goes_on_without_any_client_or_service(stack: Stack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            stream.prompt(SLOW)
            await seen.until("text")
            session = stream.session
        await stack.kill("serve")
        await asyncio.sleep(4)  # the model speaks meanwhile, and nobody listens
        await stack.start("serve")

        async def over() -> bool:
            return not (await client.session(session)).open_turn

        await eventually(over, within=30.0)
        events = [event async for event in client.history(session)]

    assert "".join(event.text.text for event in events if event.HasField("text")) == ANSWER
    assert [text for text in stack.paid if text == SLOW] == [SLOW]


async def test_the_cli_is_killed_in_the_middle_of_a_turn(stack: Stack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("fake:say(text=remember BANANA )")
            stream.prompt(SLOW)
            await seen.until("text")

            stack.kill_pids("gemini.js")
            completed = (await seen.until("turn_completed")).turn_completed
            again = await seen.turn("fake:say(text= back)")
        rows = await stack.ledger(client, sandbox.name)

    seen.assert_whole()
    assert completed.stop_reason == stream_pb2.STOP_REASON_INTERRUPTED
    assert "CLI_EXITED" in [event.error.reason for event in seen.events if event.HasField("error")]
    assert again.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert [event.session_ready.resumed for event in seen.events if event.HasField("session_ready")] == [False, True]
    last = next(request for request in reversed(stack.model.requests) if "stream" in request["path"])
    assert "BANANA" in str(last["body"]["contents"][:-1])
    assert len(rows) == len(stack.model.requests)


async def test_the_agent_is_killed_in_the_middle_of_a_turn(stack: Stack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("fake:write(path=kept.txt; content=kept)")
            stream.prompt(SLOW)
            await seen.until("text")

            stack.kill_pids("sandboxd.agent")
            completed = (await seen.until("turn_completed")).turn_completed
            again = await seen.turn("fake:shell(cmd=cat kept.txt)")
        after = await client.get(sandbox.name)

    seen.assert_whole()
    assert completed.stop_reason == stream_pb2.STOP_REASON_INTERRUPTED
    assert again.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert any("kept" in event.tool_output.text for event in seen.events if event.HasField("tool_output"))
    assert after.state == sandbox_pb2.SANDBOX_STATE_ACTIVE
    assert after.incarnations == 2


async def test_the_gateway_is_killed_in_the_middle_of_a_call(stack: Stack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            stream.prompt(SLOW)
            await seen.until("text")

            await stack.restart("gateway")
            await seen.until("turn_completed")
            again = await seen.turn("fake:say(text=fine)")
        rows = await stack.ledger(client, sandbox.name)

    seen.assert_whole()
    assert again.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert len(rows) == len(stack.model.requests)


async def test_pause_and_resume_keep_files_and_memory_within_the_same_minute(stack: Stack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("fake:write(path=kept.txt; content=kept)")
            for word in ("one", "two", "three"):
                paused = await client.pause(sandbox.name)
                assert paused.state == sandbox_pb2.SANDBOX_STATE_PAUSED
                await client.resume(sandbox.name)
                await seen.turn(f"fake:say(text={word})")
            await seen.turn("fake:shell(cmd=cat kept.txt)")

    seen.assert_whole()
    assert any("kept" in event.tool_output.text for event in seen.events if event.HasField("tool_output"))
    last = next(request for request in reversed(stack.model.requests) if "stream" in request["path"])
    asked = str(last["body"]["contents"])
    assert all(f"text={word}" in asked for word in ("one", "two", "three")), "the conversation was forgotten"
