"""`python -m tests.bench.warm_cli`: what a pool member with its CLI started already would save on its first prompt.

Each sandbox is prompted twice, in two sessions: for the first the CLI is started and initialised, for the second it
runs already, and only the session is new. The difference is the most that starting it in advance could save.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from sandboxd.ctl.client import Client, connect
from tests.bench.figures import percentile
from tests.bench.stack import stack
from tests.fake_gemini import FakeGemini


async def first_text(client: Client, sandbox: str) -> float:
    """Seconds from opening a new session with a prompt to the first of the model's text."""
    began = time.monotonic()
    async with client.stream(sandbox) as stream:
        stream.prompt("fake:say(text=here)")
        first = 0.0
        async for event in stream:
            kind = event.WhichOneof("event")
            if kind == "text" and not first:
                first = time.monotonic() - began
            if kind == "turn_completed":
                return first
    raise AssertionError("the stream ended before the turn did")


async def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=10)
    given = parser.parse_args()
    cold, warm = list[float](), list[float]()
    with (
        tempfile.TemporaryDirectory(prefix="sandboxd-warm-", ignore_cleanup_errors=True) as directory,
        FakeGemini(key=None) as model,
    ):
        async with (
            stack(Path(directory), upstream=model.url, stand_in=False) as running,
            connect(running.address, token=running.token) as client,
        ):
            for _ in range(given.number):
                sandbox = (await client.create(model="gemini-2.5-flash")).name
                cold.append(await first_text(client, sandbox))
                warm.append(await first_text(client, sandbox))
                await client.terminate(sandbox)
    for what, seconds in (("CLI started by the prompt", cold), ("CLI started before", warm)):
        shown = "  ".join(f"P{part} {percentile(seconds, part / 100) * 1000:8.1f}" for part in (50, 90))
        print(f"{what:28s} n={len(seconds):3d}  {shown}  max {max(seconds) * 1000:8.1f} ms", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
