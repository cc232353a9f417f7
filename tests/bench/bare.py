"""The floor: the same stand-ins, chunks and model calls on the same machine, with a pipe in place of sandboxd.

What a stream's events need here is what the load itself costs: stand-in, upstream and reader share the processors.
"""

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any  # JSON-RPC is dynamic

from tests.bench.driver import TURN_SECONDS, Plan, Samples

CLI = Path(__file__).parent / "recorded_cli.py"
LINE_BYTES = 1 << 20


async def bare(streams: int, plan: Plan, *, turns: int, upstream: str) -> Samples:
    """Let so many stand-ins take their turns, each read directly."""
    samples, ready = Samples(), asyncio.Barrier(streams)
    async with asyncio.TaskGroup() as group:
        for number in range(streams):
            work = _converse(plan, turns=turns, upstream=upstream, samples=samples, ready=ready)
            group.create_task(work, name=f"bare-{number}")
    return samples


async def _converse(plan: Plan, *, turns: int, upstream: str, samples: Samples, ready: asyncio.Barrier) -> None:
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "GOOGLE_GEMINI_BASE_URL": upstream}
    process = await asyncio.create_subprocess_exec(
        sys.executable, CLI, stdin=pipe, stdout=pipe, env=environment, limit=LINE_BYTES
    )
    try:
        session = (await _ask(process, "session/new", {}, samples))["sessionId"]
        await ready.wait()
        await asyncio.sleep(random.uniform(0, plan.seconds))
        for _ in range(turns):
            await asyncio.sleep(random.uniform(0, plan.seconds / 2))
            prompt = {"sessionId": session, "prompt": [{"type": "text", "text": plan.prompt}]}
            await _ask(process, "session/prompt", prompt, samples)
            samples.turns += 1
    finally:
        process.kill()
        await process.wait()


async def _ask(process: asyncio.subprocess.Process, method: str, params: dict[str, Any], samples: Samples) -> Any:
    """Send a request and read until its answer; what is said meanwhile is measured."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the stand-in has no pipes")
    process.stdin.write(json.dumps({"id": 1, "method": method, "params": params}).encode() + b"\n")
    async with asyncio.timeout(TURN_SECONDS):
        while line := await process.stdout.readline():
            received = time.monotonic_ns()
            message = json.loads(line)
            if "result" in message:
                return message["result"]
            samples.take(message["params"]["update"]["content"]["text"], received)
    raise RuntimeError("the stand-in ended")
