"""The benchmark's model API: answers at once and stamps each chunk with when the call came and when the chunk went.

Where the conversation holds a plan (the real CLI passes the prompt on), it streams that many chunks at that pace.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

CHUNKS = 4
PAUSE_SECONDS = 0.02
PLAN = re.compile(rb'\{\\+"chunks\\+": (\d+), \\+"interval\\+": ([0-9.]+)')
USAGE = {"promptTokenCount": 10_000, "candidatesTokenCount": 40, "totalTokenCount": 10_040}


async def _answer(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    arrived = time.monotonic_ns()
    plans = PLAN.findall(body)
    count, pause = (int(plans[-1][0]), float(plans[-1][1])) if plans else (CHUNKS, PAUSE_SECONDS)
    if request.path.endswith(":generateContent"):
        return web.json_response(_chunk(arrived, last=True))
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for number in range(count):
        if number:
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        chunk = json.dumps(_chunk(arrived, last=number == count - 1))
        await response.write(f"data: {chunk}\r\n\r\n".encode())
    await response.write_eof()
    return response


def _chunk(arrived: int, *, last: bool) -> dict[str, object]:
    text = json.dumps({"arrived": arrived, "sent": time.monotonic_ns()}) + "\n"
    candidate: dict[str, object] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if last:
        candidate["finishReason"] = "STOP"
    return {"candidates": [candidate], "usageMetadata": USAGE, "modelVersion": "bench"}


@asynccontextmanager
async def upstream() -> AsyncIterator[str]:
    """Serve on a free port of 127.0.0.1 and give the base URL."""
    application = web.Application(client_max_size=64 << 20)
    application.router.add_post("/v1beta/models/{call:.+}", _answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()
