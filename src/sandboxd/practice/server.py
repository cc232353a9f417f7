"""The practice model's server: the part of the Gemini API that the CLI uses, over plain HTTP on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final, Self

from aiohttp import web

from sandboxd.practice.answer import Message, count_tokens, messages, parts_of, smallest, whole_message
from sandboxd.practice.conversation import read_conversation
from sandboxd.practice.script import reply_to, title_for

DEFAULT_DELAY: Final = 0.02
"""Seconds between two chunks: readable, and a demo stays short."""
_MAX_BODY: Final = 64 << 20
_METHOD: Final = re.compile(r"/v1beta/models/(?P<model>[\w.-]+):(?P<method>\w+)")


def create_practice_app(*, delay: float = DEFAULT_DELAY) -> web.Application:
    """Make the practice model's application.

    Args:
        delay: Seconds between two chunks of a stream.
    """
    app = web.Application(client_max_size=_MAX_BODY)
    app.router.add_post("/v1beta/models/{call}", _Practice(delay).handle)
    return app


class PracticeServer:
    """The practice model on a port of loopback, as a context; `url` is what `SANDBOXD_GEMINI_URL` would be."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, delay: float = DEFAULT_DELAY) -> None:
        self._host = host
        self._port = port
        self._delay = delay
        self._stack = AsyncExitStack()
        self.url = ""

    async def __aenter__(self) -> Self:
        """Begin to serve."""
        runner = web.AppRunner(
            create_practice_app(delay=self._delay), access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, self._host, self._port).start()
        bound = runner.addresses[0]
        self.url = f"http://{bound[0]}:{bound[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop serving."""
        await self._stack.aclose()


class _Practice:
    def __init__(self, delay: float) -> None:
        self._delay = delay

    async def handle(self, request: web.Request) -> web.StreamResponse:
        found = _METHOD.fullmatch(request.path)
        try:
            body = json.loads(await request.read() or b"{}")
        except (ValueError, RecursionError):
            return _error(400, "INVALID_ARGUMENT", "The body is not JSON.")
        if found is None or not isinstance(body, Mapping):
            return _error(400, "INVALID_ARGUMENT", "The practice model does not understand this request.")
        model, method = found["model"], found["method"]
        match method:
            case "countTokens":
                inner = body.get("generateContentRequest")
                return web.json_response({"totalTokens": count_tokens(inner if isinstance(inner, Mapping) else body)})
            case "generateContent":
                return web.json_response(whole_message(_parts(body), body=body, model=model, response_id=_id_for(body)))
            case "streamGenerateContent":
                return await self._stream(request, body, model)
            case _:
                return _error(404, "NOT_FOUND", f"The practice model has no method {method}.")

    async def _stream(self, request: web.Request, body: Mapping[str, object], model: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, message in enumerate(messages(_parts(body), body=body, model=model, response_id=_id_for(body))):
            if number:
                await asyncio.sleep(self._delay)
            await response.write(b"data: " + json.dumps(message).encode() + b"\r\n\r\n")
        await response.write_eof()
        return response


def _parts(body: Mapping[str, object]) -> Sequence[Message]:
    config = body.get("generationConfig")
    settings: Mapping[str, object] = config if isinstance(config, Mapping) else {}
    conversation = read_conversation(body)
    if settings.get("responseMimeType") == "application/json":  # the CLI's router and its checks
        schema = settings.get("responseJsonSchema") or settings.get("responseSchema")
        return [{"text": json.dumps(smallest(schema))}]
    if not conversation.tools:  # titles and summaries
        return [{"text": title_for(conversation.now.prompt)}]
    return parts_of(reply_to(conversation), conversation.calls)


def _id_for(body: Mapping[str, object]) -> str:
    return f"practice-{hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]}"


def _error(code: int, status: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message, "status": status}}, status=code)
