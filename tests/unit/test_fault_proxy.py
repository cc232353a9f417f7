"""The proxy that is bad weather passes on what good weather would: also the end of a client that was killed."""

from __future__ import annotations

import asyncio
import socket
import struct

from tests.fault_proxy import before_tcp


async def test_a_client_that_resets_its_connection_ends_the_servers_too() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.read()
        ended.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, before_tcp("127.0.0.1", server.sockets[0].getsockname()[1]).running() as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await reader.readexactly(5) == b"hello"  # nothing is under way any more: only the reset tells
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close is a reset
        writer.transport.abort()

        async with asyncio.timeout(5):
            await ended.wait()
