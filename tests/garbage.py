"""Garbage for any port: half requests, wrong protocols, oversized heads, handshakes of nothing, and slow drips."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

CANARY: Final = "CANARY-garbage-7f3a9b"
"""Stands in the garbage where a secret would: it must not be found in any log."""
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_AT_ONCE: Final = 50


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def kinds(chance: random.Random) -> Sequence[bytes]:
    """One of each kind."""
    settings = frame(4, 0, 0, b"")
    secret = f"authorization: Bearer {CANARY}\r\n".encode()
    client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(300)
    return [
        b"",  # half open: connected, and nothing
        chance.randbytes(chance.randint(1, 2000)),
        b"\0" * 4096,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + secret + b"\r\n",
        b"POST /sandboxd.v1.SandboxService/List HTTP/1.1\r\nHost: x\r\n"
        + secret
        + b"Content-Length: 9\r\n\r\n{garbage}",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\n" + b"X-Pad: yyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 2000 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n" + secret + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n" + CANARY.encode(),
        client_hello,
        client_hello[:7],
        b"\x15\x03\x01\x00\x02\x02\x28",  # a TLS alert
        _PREFACE,
        _PREFACE + settings + frame(1, 4, 1, chance.randbytes(200)),  # headers that no table explains
        _PREFACE + settings + frame(1, 0, 1, b"\x82" * 60) + frame(9, 0, 1, b"\x82" * 16_000) * 8,  # no end of them
        _PREFACE + settings + frame(0, 0, 1, b"data of no stream"),
        _PREFACE + settings + struct.pack(">I", 0xFFFFFF)[1:] + b"\x00\x00" + struct.pack(">I", 1),  # 16 MB announced
        _PREFACE + settings + frame(6, 0, 0, b"12345678") * 200,  # pings
        _PREFACE + settings * 400,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00",  # remote desktop
        struct.pack(">II", 8, 80877103),  # PostgreSQL's wish for TLS
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thrown:
    """What became of it."""

    sent: int
    refused: int
    """Connections that could not be made."""


async def throw(port: int, *, times: int, seed: int = 1, answer_within: float = 0.02) -> Thrown:
    """Connect that often, send one kind each time, listen for a moment and go, now cleanly, now with a reset."""
    chance = random.Random(seed)
    gate = asyncio.Semaphore(_AT_ONCE)
    refused = 0

    async def one(number: int, data: bytes) -> None:
        nonlocal refused
        async with gate:
            try:
                async with asyncio.timeout(20):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except (OSError, TimeoutError):
                refused += 1
                return
            try:
                async with asyncio.timeout(answer_within):
                    writer.write(data)
                    await writer.drain()
                    if number % 3 == 0:
                        writer.write_eof()
                    await reader.read()
            except (OSError, TimeoutError):
                pass
            finally:
                writer.transport.abort() if number % 2 else writer.close()

    everything: list[bytes] = []
    while len(everything) < times:
        everything += kinds(chance)
    await asyncio.gather(*(one(number, data) for number, data in enumerate(everything[:times])))
    return Thrown(sent=times, refused=refused)


class Drip:
    """Connections that begin a request and then send a byte now and then, or nothing at all."""

    def __init__(self, port: int, *, count: int) -> None:
        self._port = port
        self._count = count
        self._writers: list[asyncio.StreamWriter] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for number in range(self._count):
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(
                b"" if number % 3 == 0 else b"POST / HTTP/1.1\r\nHost: x\r\nX-A: " if number % 3 == 1 else _PREFACE
            )
            self._writers.append(writer)
        self._task = asyncio.create_task(self._drip())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()

    async def _drip(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            for number, writer in enumerate(self._writers):
                if number % 3 == 1 and not writer.transport.is_closing():
                    writer.write(b"a")
