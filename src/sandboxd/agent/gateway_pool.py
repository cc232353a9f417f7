"""Connections from the model endpoint to the gateway: made with a deadline, kept a short while, used one at a time.

A request is never repeated here: it may have been paid for already. So an idle connection is used again only while it
is young and shows no sign of its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import h11

from sandboxd.agent.gateway_target import GatewayTarget

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 15.0
"""How long an idle connection is kept: well below the 75 seconds after which the gateway's server ends one."""
IDLE_CONNECTIONS = 8
READ_BYTES = 1 << 16
SILENCE_SECONDS = 300.0
"""How long the gateway may say nothing: what Node's own client allows between two pieces."""


class GatewayUnreachableError(Exception):
    """No connection, or it broke."""


@dataclass(slots=True, kw_only=True, eq=False)
class GatewayConnection:
    """One connection to the gateway."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    target: GatewayTarget
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))
    idle_since: float = 0.0

    async def send(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        """Send a piece of the request.

        Raises:
            GatewayUnreachableError: The connection broke, or nothing was taken for too long.
        """
        data = self.http.send(event)
        if not data:
            return
        try:
            self.writer.write(data)
            async with asyncio.timeout(SILENCE_SECONDS):
                await self.writer.drain()
        except (OSError, TimeoutError) as error:
            raise GatewayUnreachableError(str(error)) from error

    async def receive(self) -> h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage:
        """Return the next piece of the answer.

        Raises:
            GatewayUnreachableError: The connection broke, speaks no HTTP, or was silent for too long.
        """
        while True:
            try:
                event = self.http.next_event()
                if event is h11.NEED_DATA:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        data = await self.reader.read(READ_BYTES)
                    self.http.receive_data(data)
                    continue
            except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
                raise GatewayUnreachableError(str(error)) from error
            if isinstance(event, h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage):
                return event
            raise GatewayUnreachableError("the connection ended before the answer")

    @property
    def reusable(self) -> bool:
        """True when the last exchange is complete on both sides."""
        return self.http.our_state is h11.DONE and self.http.their_state is h11.DONE

    def abort(self) -> None:
        """End it at once: the gateway must see that nobody waits any more."""
        self.writer.transport.abort()


class GatewayPool:
    """Idle connections to one gateway."""

    def __init__(self) -> None:
        self._idle: list[GatewayConnection] = []

    async def take(self, target: GatewayTarget) -> GatewayConnection:
        """Return a connection, the youngest idle one or a new one.

        Raises:
            GatewayUnreachableError: The gateway takes no connection.
        """
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            fresh = now - connection.idle_since < IDLE_SECONDS
            closing = connection.reader.at_eof() or connection.writer.is_closing()
            if fresh and not closing and connection.target.same_place(target):
                return connection
            connection.abort()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    target.host, target.port, ssl=target.tls, limit=READ_BYTES
                )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            raise GatewayUnreachableError(str(error)) from error
        return GatewayConnection(reader=reader, writer=writer, target=target)

    def give_back(self, connection: GatewayConnection) -> None:
        """Keep a connection whose exchange is over, or end it."""
        if not connection.reusable or len(self._idle) >= IDLE_CONNECTIONS:
            connection.abort()
            return
        connection.http.start_next_cycle()
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    async def close(self) -> None:
        """End all idle connections."""
        while self._idle:
            connection = self._idle.pop()
            connection.abort()
            with contextlib.suppress(OSError):
                await connection.writer.wait_closed()
