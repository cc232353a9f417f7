"""The one model API that this gateway talks to, over pooled connections. No other address is ever asked.

What leaves this module are status, a few headers and bytes. Its errors carry a constant word and no cause: the HTTP
library's exceptions hold the request's headers, and the key with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

import aiohttp
from yarl import URL

from sandboxd import __version__
from sandboxd.gateway.config import GatewayTimeouts
from sandboxd.gateway.policy import ModelCall
from sandboxd.gateway.secret import Secret
from sandboxd.model.trace import TRACEPARENT
from sandboxd.model.usage import CallError

_KEY_REFUSED: Final = frozenset({400, 401, 403})
"""What the API says where it does not take a key: API_KEY_INVALID is a 400."""
_POOL: Final = 1024
"""Connections at most; above the bound of calls, so that the pool is never what waits."""
_KEPT_ALIVE: Final = 15.0
"""Seconds for which an unused connection is kept; the API closes its own later, so that we are the ones who close."""
_PASSED_ON: Final = ("content-type", "retry-after")
_READ_SIZE: Final = 64 << 10


class UpstreamError(Exception):
    """The model API gave no answer, or not all of it."""

    def __init__(self, error: CallError) -> None:
        super().__init__(error.value)
        self.error = error
        self.reason = error.value


class UpstreamAnswer:
    """An answer whose head is here and whose body is read in pieces."""

    def __init__(self, response: aiohttp.ClientResponse, *, key: Secret) -> None:
        self._response = response
        self.key: Final = key
        """The key that it came for."""
        self.status: Final = response.status
        self.sse: Final = response.content_type == "text/event-stream"
        _end_with_connection(response)

    def headers(self) -> dict[str, str]:
        """Return the headers that may be passed on."""
        return {name: self._response.headers[name] for name in _PASSED_ON if name in self._response.headers}

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the body's bytes as they come, uncompressed.

        Raises:
            UpstreamError: It broke, or nothing came for too long.
        """
        try:
            while chunk := await self._response.content.read(_READ_SIZE):
                yield chunk
        except TimeoutError:
            raise UpstreamError(CallError.UPSTREAM_TIMEOUT) from None
        except (aiohttp.ClientError, OSError):
            raise UpstreamError(CallError.UPSTREAM_CUT) from None


def _end_with_connection(response: aiohttp.ClientResponse) -> None:
    """Make sure that whoever reads the body hears when its connection is gone.

    aiohttp closes the connection on a chunk that it cannot read, and leaves the reader waiting, without any deadline.
    """
    connection, content = response.connection, response.content
    protocol = connection.protocol if connection is not None else None
    closed = protocol.closed if protocol is not None else None
    if closed is None:
        return  # the body is here already, or its end is

    def on_closed(_: asyncio.Future[None]) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection is gone"))

    closed.add_done_callback(on_closed)


class GeminiUpstream:
    """A client of the one model API."""

    def __init__(self, *, base_url: str, timeouts: GatewayTimeouts) -> None:
        self._base = base_url.rstrip("/")
        self._timeouts = timeouts
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the pool."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_POOL, keepalive_timeout=_KEPT_ALIVE, ttl_dns_cache=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._timeouts.connect, sock_read=self._timeouts.idle
            ),
            trust_env=False,  # no proxy from the environment: the key goes to the one upstream and nowhere else
            auto_decompress=True,  # asked for identity; an answer that is compressed all the same must be readable
            skip_auto_headers=["user-agent", "accept"],
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the pool."""
        if self._http is not None:
            await self._http.close()

    @asynccontextmanager
    async def post(
        self, call: ModelCall, *, body: bytes, key: Secret, fallback: Secret | None = None, traceparent: str = ""
    ) -> AsyncIterator[UpstreamAnswer]:
        """Make one call; leaving the block before the answer was read cancels it at the API.

        Where the API's answer may mean that it does not take the key, the call is made once more with `fallback`. It
        says 400 for a key that it does not know, as for a bad request, which it then refuses a second time, unpaid.

        Raises:
            UpstreamError: The API could not be reached, or did not answer in time.
        """
        response = await self._send(call, body=body, key=key, traceparent=traceparent)
        if fallback is not None and response.status in _KEY_REFUSED:
            response.close()
            key = fallback
            response = await self._send(call, body=body, key=key, traceparent=traceparent)
        del body  # sent: it need not live as long as the answer
        try:
            yield UpstreamAnswer(response, key=key)
        finally:
            # Gives the connection back where the body was read to its end, and cuts it where it was not.
            response.close() if not response.content.is_eof() else response.release()

    async def _send(self, call: ModelCall, *, body: bytes, key: Secret, traceparent: str) -> aiohttp.ClientResponse:
        if self._http is None:
            raise RuntimeError("the upstream is not open")
        headers = {
            "x-goog-api-key": key.reveal(),
            "content-type": "application/json",
            "accept": "text/event-stream" if call.sse else "application/json",
            "accept-encoding": "identity",
            "user-agent": f"sandboxd-gateway/{__version__}",
        }
        if traceparent:
            headers[TRACEPARENT] = traceparent
        try:
            async with asyncio.timeout(self._timeouts.headers):
                return await self._http.post(
                    URL(f"{self._base}{call.upstream_path}", encoded=True),
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise UpstreamError(CallError.UPSTREAM_UNREACHABLE) from None
        except TimeoutError:
            raise UpstreamError(CallError.UPSTREAM_TIMEOUT) from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise UpstreamError(CallError.UPSTREAM_CUT) from None
