"""The model API of a run: answers quickly, counts tokens by itself, and writes down every request that reaches it."""

from __future__ import annotations

import asyncio
import json
import re
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from tests.history.record import Call

CHUNKS = 3
PAUSE_SECONDS = 0.05
_MARKER = re.compile(rb'"text": ?"(mark-[a-z0-9-]+)"')


@dataclass
class Upstream:
    """What reached it."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        found = _MARKER.search(await request.read())
        marker = found[1].decode() if found else ""
        arrived, tokens = time.monotonic_ns(), 100 + zlib.crc32(marker.encode()) % 1000
        number = len(self.calls)
        self.calls.append(Call(marker=marker, tokens=tokens, whole=False))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for at in range(CHUNKS):
            await asyncio.sleep(PAUSE_SECONDS)
            text = json.dumps({"arrived": arrived, "sent": time.monotonic_ns()}) + "\n"
            candidate: dict[str, object] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
            if at == CHUNKS - 1:
                candidate["finishReason"] = "STOP"
            usage = {"promptTokenCount": 100, "candidatesTokenCount": tokens - 100, "totalTokenCount": tokens}
            event = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "history"}
            await response.write(f"data: {json.dumps(event)}\r\n\r\n".encode())
        await response.write_eof()
        self.calls[number] = Call(marker=marker, tokens=tokens, whole=True)
        return response


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """Serve on a free port of 127.0.0.1."""
    made = Upstream()
    application = web.Application()
    application.router.add_post("/v1beta/models/{call:.+}", made.answer)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        await runner.cleanup()
