"""A model API that answers nonsense: each kind has a defined answer, one settled row, and bounded memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from sandboxd.gateway.config import GatewayTimeouts
from sandboxd.model.usage import CallError, UsageEvent, UsageState
from tests.fake_gemini import FakeGemini
from tests.gateway_world import GatewayWorld, config_for, error_of, texts
from tests.raw_upstream import Answer, RawUpstream, peak_memory

OK = b"HTTP/1.1 200 OK\r\n"
SSE = b"content-type: text/event-stream\r\n"
JSON = b"content-type: application/json\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
USAGE = {"promptTokenCount": 110, "candidatesTokenCount": 4, "totalTokenCount": 114}
STREAM, WHOLE = "streamGenerateContent?alt=sse", "generateContent"
EST, SET = UsageState.ESTIMATED, UsageState.SETTLED
MEGABYTE = 1 << 20
SPLIT = b"|SPLIT|"
"""Stands for a moment's silence, so that what was sent before has arrived alone."""


def message(text: str, *, last: bool = True) -> bytes:
    candidate: dict[str, object] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if last:
        candidate["finishReason"] = "STOP"
    return json.dumps({"candidates": [candidate], "usageMetadata": USAGE}).encode()


def event(text: str, *, last: bool = True) -> bytes:
    return b"data: " + message(text, last=last) + b"\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def says(*pieces: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.1 if len(pieces) == 2 else 0)

    return answer


def sized(body: bytes, *headers: bytes) -> bytes:
    return OK + b"".join(headers) + b"content-length: %d\r\n\r\n" % len(body) + body


@asynccontextmanager
async def gateway_before(
    answer: Answer, directory: Path, *, timeouts: GatewayTimeouts | None = None
) -> AsyncIterator[tuple[GatewayWorld, RawUpstream]]:
    with FakeGemini() as unused:
        async with RawUpstream(answer).running() as upstream:
            config = config_for(unused, directory, upstream_url=upstream.url)
            config = replace(config, timeouts=timeouts or GatewayTimeouts())
            async with GatewayWorld(fake=unused, config=config).running() as world:
                yield world, upstream


async def ask(world: GatewayWorld, *, method: str = STREAM) -> tuple[int, bytes | None]:
    """Ask once; the body is None where the answer broke."""
    async with world.request("hello", method=method) as answer:
        try:
            return answer.status, await answer.read()
        except aiohttp.ClientPayloadError:
            return answer.status, None


async def the_row(world: GatewayWorld) -> UsageEvent:
    row = await world.settled()
    assert len(world.rows) == 1
    return row


def brotli_like() -> bytes:
    return bytes([0x1B, 0x2A, 0x00]) + bytes(range(40))


PACKED = gzip.compress(event("packed"))

NONSENSE = {
    # name: (method, what is sent, status for the CLI, error, state)
    "garbage instead of HTTP": (STREAM, random.Random(1).randbytes(4096), 502, CallError.UPSTREAM_CUT, EST),
    "TLS on a plain port": (STREAM, b"\x15\x03\x03\x00\x02\x02\x28" * 8, 502, CallError.UPSTREAM_CUT, EST),
    "headers of a megabyte": (
        STREAM, OK + b"x-pad: " + b"y" * MEGABYTE + b"\r\n\r\n", 502, CallError.UPSTREAM_CUT, EST
    ),
    "twenty thousand headers": (
        STREAM, OK + b"x-pad: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 20_000 + b"\r\n", 502,
        CallError.UPSTREAM_CUT, EST,
    ),
    "two lengths": (
        STREAM, OK + SSE + b"content-length: 5\r\ncontent-length: 9\r\n\r\nhello", 502, CallError.UPSTREAM_CUT, EST
    ),
    "a status of no meaning": (WHOLE, b"HTTP/1.1 299 \r\ncontent-length: 0\r\n\r\n", 299, None, SET),
    "a status beyond all": (
        WHOLE, b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n", 999, CallError.UPSTREAM_STATUS, SET
    ),
    "chunks of garbage": (
        STREAM, OK + SSE + CHUNKED + b"\r\n" + chunk(event("a", last=False)) + SPLIT + b"ZZZZ\r\nnot a chunk", 200,
        CallError.UPSTREAM_CUT, EST,
    ),
    "less than its length": (
        WHOLE, OK + JSON + b"content-length: 5000\r\n\r\n{", 502, CallError.UPSTREAM_CUT, EST
    ),
    "HTML instead of a stream": (
        STREAM, sized(b"<html>It works!</html>", b"content-type: text/html\r\n"), 200, CallError.UPSTREAM_MALFORMED, EST
    ),
    "no content type": (WHOLE, sized(b"\x00\xff" * 50), 200, CallError.UPSTREAM_MALFORMED, EST),
    "a stream where none was asked": (WHOLE, sized(event("a"), SSE), 200, CallError.UPSTREAM_MALFORMED, EST),
    "gzip that is none": (
        STREAM, sized(b"not gzip at all, not at all", SSE, b"content-encoding: gzip\r\n"), 200, CallError.UPSTREAM_CUT,
        EST,
    ),
    "gzip cut short": (
        STREAM, sized(PACKED[: len(PACKED) // 2], SSE, b"content-encoding: gzip\r\n"), 200,
        CallError.UPSTREAM_MALFORMED, EST,
    ),
    "a coding that nobody knows": (
        STREAM, sized(brotli_like(), SSE, b"content-encoding: br\r\n"), 502, CallError.UPSTREAM_CUT, EST
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(NONSENSE))
async def test_nonsense_of_the_api_has_a_defined_answer_and_a_settled_row(kind: str, tmp_path: Path) -> None:
    method, sent, status, error, state = NONSENSE[kind]
    async with gateway_before(says(*sent.split(SPLIT)), tmp_path) as (world, upstream):
        with peak_memory() as memory:
            found, body = await ask(world, method=method)
        row = await the_row(world)
        alive = (await ask(world, method=method))[0]

    assert (found, row.error_reason, row.state) == (status, error, state)
    assert (body is None) == (status == 200 and error is CallError.UPSTREAM_CUT), "broken for the CLI, too"
    if status == 502:
        assert error_of(body or b"{}")["status"] == "UNAVAILABLE"
    assert alive == status, "the gateway goes on"
    assert upstream.requests == 2
    assert memory.grown < 32 * MEGABYTE


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_answer_is_read_metered_and_passed_on_plain(coding: str, tmp_path: Path) -> None:
    packed = PACKED if coding == "gzip" else zlib.compress(event("packed"))
    head = OK + SSE + CHUNKED + f"content-encoding: {coding}\r\n\r\n".encode()
    pieces = [chunk(packed[at : at + 5]) for at in range(0, len(packed), 5)]
    async with gateway_before(says(head, *pieces, b"0\r\n\r\n"), tmp_path) as (world, _):
        status, body = await ask(world)
        row = await the_row(world)

    assert (status, texts(body or b"")) == (200, ["packed"])
    assert (row.state, row.tokens.total, row.error_reason) == (SET, 114, None)


async def test_an_answer_of_http_1_0_ends_with_its_connection(tmp_path: Path) -> None:
    async with gateway_before(says(b"HTTP/1.0 200 OK\r\n" + SSE + b"\r\n" + event("old")), tmp_path) as (world, _):
        status, body = await ask(world)
        row = await the_row(world)

    assert (status, texts(body or b"")) == (200, ["old"])
    assert (row.state, row.tokens.total) == (SET, 114)


@pytest.mark.parametrize("method", [STREAM, WHOLE])
async def test_a_bomb_of_gzip_costs_neither_memory_nor_the_gateway(method: str, tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(b"\0" * MEGABYTE) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = bytes.fromhex("1f8b0800000000000003") + block * 1024
    head = SSE if method == STREAM else JSON
    async with gateway_before(says(sized(bomb, head, b"content-encoding: gzip\r\n")), tmp_path) as (world, _):
        with peak_memory() as memory:
            status, body = await ask(world, method=method)
        row = await the_row(world)

    assert len(bomb) < 2 * MEGABYTE, "a gigabyte of nothing"
    assert (status, body is None) == ((200, True) if method == STREAM else (400, False))
    assert (row.state, row.error_reason) == (EST, CallError.RESPONSE_TOO_LARGE)
    assert memory.grown < 200 * MEGABYTE


@pytest.mark.parametrize("method", [STREAM, WHOLE])
async def test_an_answer_of_200_megabytes_is_cut_at_the_limit_and_not_held(method: str, tmp_path: Path) -> None:
    sent = 0

    async def answer(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + (SSE if method == STREAM else JSON) + CHUNKED + b"\r\n")
        piece = event("x" * (MEGABYTE // 4), last=False)
        while sent < 200 * MEGABYTE:
            writer.write(chunk(piece))
            await writer.drain()
            sent += len(piece)

    async with gateway_before(answer, tmp_path) as (world, upstream):
        passed = 0
        with peak_memory() as memory:
            async with world.request("hello", method=method) as reading:
                status = reading.status
                try:
                    async for piece in reading.content.iter_any():
                        passed += len(piece)
                except aiohttp.ClientPayloadError:
                    pass
        row = await the_row(world)
        await asyncio.wait_for(upstream.gone.wait(), 10)

    assert status == (200 if method == STREAM else 400)
    assert (row.state, row.error_reason) == (EST, CallError.RESPONSE_TOO_LARGE)
    assert passed <= 64 * MEGABYTE
    assert sent < 100 * MEGABYTE, "the rest was called off at the API"
    assert memory.grown < (60 if method == STREAM else 160) * MEGABYTE


async def test_a_stream_that_beats_for_ever_and_says_nothing_ends_at_the_deadline(tmp_path: Path) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + SSE + CHUNKED + b"\r\n")
        while True:
            writer.write(chunk(b": still here\r\n\r\n"))
            await writer.drain()
            await asyncio.sleep(0.01)

    timeouts = GatewayTimeouts(total=1.0, idle=0.5)
    began = time.monotonic()
    async with gateway_before(answer, tmp_path, timeouts=timeouts) as (world, upstream):
        status, body = await ask(world)
        took = time.monotonic() - began
        row = await the_row(world)
        await asyncio.wait_for(upstream.gone.wait(), 10)

    assert (status, body) == (200, None)
    assert (row.state, row.error_reason) == (EST, CallError.UPSTREAM_TIMEOUT)
    assert row.tokens.prompt == row.reserved.prompt_tokens
    assert 1.0 <= took < 15


async def test_a_line_without_an_end_is_passed_on_but_not_gathered(tmp_path: Path) -> None:
    """40 MB of one SSE line: beyond what is looked into, below what is passed on."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + SSE + CHUNKED + b"\r\n")
        for _ in range(40 * 4):
            writer.write(chunk(b"y" * (MEGABYTE // 4)))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with gateway_before(answer, tmp_path) as (world, _):
        passed = 0
        with peak_memory() as memory:
            async with world.request("hello") as reading:
                async for piece in reading.content.iter_any():
                    passed += len(piece)
        row = await the_row(world)

    assert passed == 40 * MEGABYTE
    assert (row.state, row.error_reason) == (EST, CallError.UPSTREAM_MALFORMED)
    assert row.tokens.total == row.reserved.prompt_tokens
    assert memory.grown < 120 * MEGABYTE


async def test_an_answer_before_the_request_was_read_is_no_answer_to_the_next_one(tmp_path: Path) -> None:
    """The API pushes a second answer on a connection that is kept: it must not be taken for another call's."""
    first = sized(message("mine"), JSON)
    pushed = sized(message("SOMEBODY ELSE'S"), JSON)

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(first + pushed)
        await writer.drain()
        await asyncio.sleep(0.2)

    async with gateway_before(answer, tmp_path) as (world, _):
        answers = [await ask(world, method=WHOLE) for _ in range(3)]

    assert all(b"SOMEBODY" not in (body or b"") for _, body in answers)
    assert answers[0][0] == 200
