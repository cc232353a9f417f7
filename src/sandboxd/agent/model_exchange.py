"""One connection of the CLI to the model endpoint: request after request, each copied to the gateway and back.

Streams both ways piece by piece and holds no body. Its own errors have Google's shape, and 503 is used only for what
passes by itself, because the CLI repeats those.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from dataclasses import dataclass, field
from datetime import datetime

import h11

from sandboxd.agent.clock import now
from sandboxd.agent.gateway_pool import READ_BYTES, GatewayConnection, GatewayPool, GatewayUnreachableError
from sandboxd.agent.gateway_target import (
    ELAPSED_HEADER,
    GatewayTarget,
    Headers,
    request_headers,
    request_target,
    response_headers,
)

BODY_BYTES = 64 << 20
"""Largest body of a request."""
KEEP_ALIVE_SECONDS = 75.0
"""How long the CLI's connection may lie idle, or take to send its next piece."""
EARLY_BYTES = 1 << 16
"""How much of a next request is taken while one is under way; more waits in the kernel."""
LAST_ANSWER_SECONDS = 1.0
"""How long an answer is waited for from a gateway that takes no more of the request."""
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is read. Closing at once would reset the connection and lose the answer."""

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Forwarding:
    """What all connections share."""

    target: GatewayTarget | None = None
    pool: GatewayPool = field(default_factory=GatewayPool)
    open_requests: int = 0
    requests: int = 0
    failed_requests: int = 0
    last_time: datetime | None = None


class RefusalError(Exception):
    """A request that is answered here."""

    def __init__(self, code: int, status: str, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.message = message
        self.reason = reason


class ClientGoneError(Exception):
    """The CLI closed its connection, or speaks no HTTP any more."""


class Exchange:
    """One connection."""

    def __init__(self, forwarding: Forwarding, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._forwarding = forwarding
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 16)

    async def run(self) -> None:
        """Serve until the connection ends.

        Raises:
            ClientGoneError: The CLI ended it in the middle of something.
        """
        while True:
            event = await self._next_event()
            if not isinstance(event, h11.Request):
                return
            await self._answer(event)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _answer(self, request: h11.Request) -> None:
        shared = self._forwarding
        shared.open_requests += 1
        shared.requests += 1
        shared.last_time = now()
        try:
            _check(request)
            await self._forward(request, _usable(shared.target))
        except RefusalError as refusal:
            await self._refuse(refusal)
        except GatewayUnreachableError as error:
            shared.failed_requests += 1
            log.warning("model_endpoint.gateway_unreachable", extra={"fields": {"error": str(error)}})
            message = "The model gateway does not answer. Try again in a moment."
            await self._refuse(RefusalError(503, "UNAVAILABLE", message, reason="GATEWAY_UNREACHABLE"))
        finally:
            shared.open_requests -= 1
            shared.last_time = now()

    async def _forward(self, request: h11.Request, target: GatewayTarget) -> None:
        began = time.monotonic()
        gateway = await self._forwarding.pool.take(target)
        try:
            headers = request_headers(target, request.headers)
            headers.append((ELAPSED_HEADER, b"%d" % int((time.monotonic() - began) * 1_000_000)))
            head = h11.Request(
                method=request.method,
                target=request_target(target, request.target),
                headers=_with_framing(request, headers),
            )
            await gateway.send(head)
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            await self._exchange(gateway)
        except BaseException:
            gateway.abort()
            raise
        self._forwarding.pool.give_back(gateway)

    async def _exchange(self, gateway: GatewayConnection) -> None:
        """Copy both ways at once. Whichever way breaks first ends the other."""
        upload = asyncio.create_task(self._upload(gateway), name="model-upload")
        download = asyncio.create_task(self._download(gateway), name="model-download")
        try:
            # The upload ends only by an error: when all is sent it watches whether the CLI goes away.
            await asyncio.wait([upload, download], return_when=asyncio.FIRST_COMPLETED)
            if not download.done() and isinstance(upload.exception(), GatewayUnreachableError):
                # The gateway may have answered before it read everything: that answer tells more.
                await asyncio.wait([download], timeout=LAST_ANSWER_SECONDS)
            (download if download.done() else upload).result()
        finally:
            for task in (upload, download):
                task.cancel()
            await asyncio.gather(upload, download, return_exceptions=True)

    async def _upload(self, gateway: GatewayConnection) -> None:
        """Copy the request's body; then watch whether the CLI goes away."""
        size = 0
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Data):
                size += len(event.data)
                if size > BODY_BYTES:
                    raise _too_large()
                await gateway.send(h11.Data(data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                await gateway.send(h11.EndOfMessage())
                break
            else:
                raise ClientGoneError
        await self._watch()

    async def _watch(self) -> None:
        """Wait for the CLI to go away, and raise then. What it sends ahead is kept for its turn."""
        early = 0
        while early < EARLY_BYTES:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise ClientGoneError
            early += len(data)
            self._http.receive_data(data)
        await asyncio.Event().wait()

    async def _download(self, gateway: GatewayConnection) -> None:
        while True:
            event = await gateway.receive()
            if isinstance(event, h11.InformationalResponse):
                continue
            if isinstance(event, h11.Response):
                headers = response_headers(event.headers)
                await self._send(h11.Response(status_code=event.status_code, headers=headers, reason=event.reason))
            elif isinstance(event, h11.Data):
                await self._send(h11.Data(data=bytes(event.data)))
            else:
                await self._send(h11.EndOfMessage())
                return

    async def _refuse(self, refusal: RefusalError) -> None:
        if self._http.our_state is not h11.SEND_RESPONSE:
            raise ClientGoneError from refusal  # half an answer is out: only cutting it says that it is not whole
        if refusal.code != 413:
            await self._skip_body(KEEP_ALIVE_SECONDS)
        detail = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": refusal.reason,
            "domain": "agent.sandboxd.dev",
        }
        error = {"code": refusal.code, "message": refusal.message, "status": refusal.status, "details": [detail]}
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json; charset=UTF-8"), (b"content-length", b"%d" % len(body))]
        if self._http.their_state is not h11.DONE:
            headers.append((b"connection", b"close"))
        await self._send(h11.Response(status_code=refusal.code, headers=headers))
        await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())
        await self._skip_body(LINGER_SECONDS)

    async def _skip_body(self, seconds: float) -> None:
        """Read what is left of the request, within bounds."""
        left = BODY_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while left > 0 and self._http.their_state is h11.SEND_BODY:
                    event = await self._next_event()
                    left -= len(event.data) if isinstance(event, h11.Data) else 0

    async def _next_event(self) -> object:
        while True:
            try:
                event = self._http.next_event()
                if event is not h11.NEED_DATA:
                    return event
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    data = await self._reader.read(READ_BYTES)
                self._http.receive_data(data)
            except (h11.RemoteProtocolError, TimeoutError) as error:
                raise ClientGoneError from error

    async def _send(self, event: h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage) -> None:
        try:
            data = self._http.send(event)
        except h11.LocalProtocolError as error:
            raise ClientGoneError from error
        if data:
            self._writer.write(data)
            await self._writer.drain()


def _usable(target: GatewayTarget | None) -> GatewayTarget:
    if target is None:
        raise RefusalError(
            503,
            "UNAVAILABLE",
            "The sandbox is not connected to the model gateway yet. Try again in a moment.",
            reason="MODEL_ENDPOINT_NOT_SET",
        )
    if target.expire_time is not None and target.expire_time <= now():
        raise RefusalError(
            503,
            "UNAVAILABLE",
            "The sandbox's access to the model gateway has lapsed and is being renewed. Try again in a moment.",
            reason="MODEL_TOKEN_EXPIRED",
        )
    return target


def _check(request: h11.Request) -> None:
    """Refuse what no program of the sandbox would send."""
    headers = dict(request.headers)
    if not _is_loopback(headers.get(b"host", b"")) or b"origin" in headers:
        # A web page must not get here, neither by a name of its own that points to 127.0.0.1 nor directly.
        raise RefusalError(
            403,
            "PERMISSION_DENIED",
            "The model endpoint serves programs of this sandbox, not web pages.",
            reason="BROWSER_REFUSED",
        )
    if not request.target.startswith(b"/"):
        raise RefusalError(400, "INVALID_ARGUMENT", "The request's target must be a path.", reason="TARGET_INVALID")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > BODY_BYTES:
        raise _too_large()


def _is_loopback(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    name = name.partition("]")[0].removeprefix("[") if name.startswith("[") else name.partition(":")[0]
    return name in {"127.0.0.1", "localhost", "::1"}


def _with_framing(request: h11.Request, headers: Headers) -> Headers:
    """Keep a body without a known length chunked; `transfer-encoding` is hop by hop and was dropped."""
    chunked = any(name == b"transfer-encoding" for name, _ in request.headers)
    return [*headers, (b"transfer-encoding", b"chunked")] if chunked else headers


def _too_large() -> RefusalError:
    return RefusalError(
        413,
        "INVALID_ARGUMENT",
        f"The request is larger than {BODY_BYTES >> 20} MiB.",
        reason="REQUEST_TOO_LARGE",
    )
