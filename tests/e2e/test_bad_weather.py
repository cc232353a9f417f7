"""PostgreSQL restarted in a turn, the key searched for everywhere, and the CLI driven a run per prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from sandboxd.persistence.embedded import EmbeddedPostgres
from sandboxd.persistence.engine import plain_url
from sandboxd.v1 import stream_pb2
from tests.e2e.conftest import StackMaker
from tests.e2e.stack import Stack, Transcript
from tests.e2e.test_crashes import ANSWER, SLOW
from tests.eventually import eventually

pytestmark = pytest.mark.timeout(300)

CANARY = "AIzaSyCANARY-0123456789-abcdefghijklmno"


async def test_postgresql_is_restarted_in_the_middle_of_a_turn(
    own_postgres: EmbeddedPostgres, make_stack: StackMaker
) -> None:
    async with make_stack(own_postgres.url()) as stack, stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            stream.prompt(SLOW)
            await seen.until("text")

            await own_postgres.stop()
            await asyncio.sleep(1.5)  # the model goes on speaking, and nothing can be committed
            await own_postgres.start()
            completed = (await seen.until("turn_completed")).turn_completed
            again = await seen.turn("fake:say(text=next)")
        rows = await stack.ledger(client, sandbox.name)

    seen.assert_whole()
    assert completed.stop_reason == again.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert seen.text == ANSWER + "next"
    assert [text for text in stack.paid if text == SLOW] == [SLOW]
    assert len(rows) == len(stack.model.requests)


async def test_the_api_key_is_nowhere_but_in_the_gateway(postgres_url: str, make_stack: StackMaker) -> None:
    async with make_stack(postgres_url, api_key=CANARY) as stack, stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("fake:shell(cmd=env && cat /proc/$PPID/environ)")
            await seen.turn("fake:denied")
            await seen.turn("fake:malformed")
            await seen.turn("fake:say(text=the key was accepted)")
        dump = await dump_of(postgres_url)
        files = {path: path.read_bytes() for path in files_below(stack.home)}
        processes = {
            pid: Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
            for words in ("sandboxd.agent", "gemini.js")
            for pid in stack.pids(words)
        }

    assert "the key was accepted" in seen.text
    assert all(request["headers"]["x-goog-api-key"] == CANARY for request in lower_headers(stack))
    assert len(processes) >= 2
    assert len(files) > 10
    assert "turn_started" in dump
    secret = CANARY.encode()
    assert [path for path, content in files.items() if secret in content] == []
    assert [pid for pid, content in processes.items() if secret in content] == []
    assert CANARY not in dump
    assert any("PATH=" in event.tool_output.text for event in seen.events if event.HasField("tool_output"))
    assert CANARY not in "".join(str(event) for event in seen.events)


async def test_the_cli_can_be_driven_a_run_per_prompt(postgres_url: str, make_stack: StackMaker) -> None:
    async with (
        make_stack(postgres_url, settings={"SANDBOXD_CLI_DIALECT": "headless"}) as stack,
        stack.client() as client,
    ):
        sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            first = await seen.turn("fake:shell(cmd=echo from the shell)")
            second = await seen.turn("fake:say(text=second)")
            stream.prompt(SLOW)
            await seen.until("text")
            stream.cancel()
            third = (await seen.until("turn_completed")).turn_completed
        rows = await stack.ledger(client, sandbox.name)

    seen.assert_whole()
    assert [first.stop_reason, second.stop_reason] == [stream_pb2.STOP_REASON_END_TURN] * 2
    assert third.stop_reason == stream_pb2.STOP_REASON_CANCELLED
    assert any("from the shell" in event.tool_output.text for event in seen.events if event.HasField("tool_output"))
    streams = [request for request in stack.model.requests if "stream" in request["path"]]
    assert "from the shell" in str(streams[2]["body"]["contents"][:-1]), "the second run did not resume the first"
    # The stand-in for the API notices only at its next word that nobody listens any more.
    await eventually(lambda: len(rows) == len(stack.model.requests))
    assert all(row.turn for row in rows)


async def dump_of(url: str) -> str:
    """Every row of every table, as text."""
    connection = await asyncpg.connect(plain_url(url))
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = [
            str(row[0])
            for table in tables
            for row in await connection.fetch(f'SELECT t::text FROM "{table["tablename"]}" AS t')
        ]
    finally:
        await connection.close()
    return "\n".join(rows)


def files_below(home: Path) -> Iterator[Path]:
    return (path for path in home.rglob("*") if path.is_file() and not path.is_symlink())


def lower_headers(stack: Stack) -> list[dict[str, dict[str, str]]]:
    return [
        {"headers": {name.lower(): value for name, value in request["headers"].items()}}
        for request in stack.model.requests
    ]
