"""The clock of a real service and a real gateway is set, ahead and back, between and under turns (libfaketime)."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.v1 import stream_pb2
from tests.e2e.conftest import StackMaker
from tests.e2e.stack import Transcript

FOLDERS = ("/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime")


def faketime() -> str:
    """The library; skips where this machine has none."""
    for folder in FOLDERS:
        library = Path(folder) / "libfaketimeMT.so.1"
        if library.is_file():
            return str(library)
    pytest.skip("libfaketime is not installed (Debian: apt-get install libfaketime)")


@pytest.mark.timeout(400)
async def test_real_processes_whose_clock_is_set_go_on(
    postgres_url: str, make_stack: StackMaker, tmp_path: Path
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+600\n")
    settings = {
        "LD_PRELOAD": faketime(),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    ends = []
    async with make_stack(postgres_url, settings=settings) as stack, stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash", freelancer="one")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            ends.append(await seen.turn("fake:say(text=ahead)"))
            stream.prompt("fake:slow(chunks=6; delay=0.4)")
            await seen.until("text")
            clock.write_text("+0\n")  # ten minutes back, under a turn
            ends.append((await seen.until("turn_completed")).turn_completed)
            await client.pause(sandbox.name)
            await client.resume(sandbox.name)
            ends.append(await seen.turn("fake:say(text=back)"))
            clock.write_text("+600\n")  # and ahead again
            await client.pause(sandbox.name)
            await client.resume(sandbox.name)
            ends.append(await seen.turn("fake:say(text=again)"))
        other = await client.create(model="gemini-2.5-flash", freelancer="two")
        rows = await stack.ledger(client, sandbox.name)

    seen.assert_whole()
    assert [end.stop_reason for end in ends] == [stream_pb2.STOP_REASON_END_TURN] * 4
    assert other.name != sandbox.name
    assert len(rows) == len(stack.model.requests)
    assert sum(end.total_tokens for end in ends) == sum(row.tokens.total for row in rows)
    assert all(row.end_time.ToDatetime() >= row.start_time.ToDatetime() for row in rows)
