"""A channel to one service, and calls on it that are repeated with the same request id while it is away."""

from __future__ import annotations

import asyncio
import ipaddress
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import grpc

from sandboxd.ctl.backoff import UNARY, Backoff, RetryPolicy
from sandboxd.ctl.errors import ApiError, from_rpc_error
from sandboxd.ctl.target import TlsOptions
from sandboxd.ctl.tls import TlsError, channel_credentials

if TYPE_CHECKING:
    from google.protobuf.message import Message

RequestT = TypeVar("RequestT", bound="Message")
ResponseT = TypeVar("ResponseT", bound="Message")

MESSAGE_BYTES = 32 * 1024 * 1024
"""Largest message either way: a prompt may carry 14 MiB of attachments."""
CALL_SECONDS = 30.0
"""Deadline of a call that only reads."""
WORK_SECONDS = 180.0
"""Deadline of a call that waits for a sandbox: create, pause, resume, terminate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which service to talk to, and as whom."""

    address: str
    """`HOST:PORT`, `unix:PATH`, or with `http://` (no TLS) or `https://` in front. Without one of these, TLS is used
    for every host but loopback: a token must not cross a network in clear by accident."""
    token: Callable[[], str]
    """Asked before each call, so that a token file that was renewed is read again."""
    tls: TlsOptions = field(default_factory=TlsOptions)
    """Whom to trust, and what to show; each file asks for TLS."""
    for_client: str = ""
    """The client that the platform acts for, where neither its token nor its certificate says so."""


class Connection:
    """One channel, and how calls are made on it."""

    def __init__(self, target: Target, *, retry: RetryPolicy = UNARY) -> None:
        self.target = target
        self.channel = open_channel(target)
        self.retry = retry

    async def close(self) -> None:
        """Close the channel; open calls end."""
        await self.channel.close()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what goes with every call."""
        token = self.target.token()
        shown = [("authorization", f"Bearer {token}")] if token else []
        if self.target.for_client:
            shown.append(("x-sandboxd-client", self.target.for_client))
        return tuple(shown)

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout: float = CALL_SECONDS,
    ) -> ResponseT:
        """Make a call; while the service is away, make it again with the very same request.

        Raises:
            ApiError: It was refused, failed, or the service stayed away.
        """
        backoff = Backoff(self.retry)
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                return await method(request, timeout=max(left, 0.001), metadata=self.metadata())
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
            delay = backoff.next_delay(at_least=error.retry_after) if is_away(error) else None
            if delay is None or delay > left:
                raise error
            await asyncio.sleep(delay)


def is_away(error: ApiError) -> bool:
    """Tell whether the same call may succeed later. A certificate that is not trusted does not become so."""
    return error.code is grpc.StatusCode.UNAVAILABLE and not error.reason.startswith("TLS_")


def new_request_id() -> str:
    """Make the id that keeps one intention one, however often it is sent."""
    return str(uuid.uuid4())


def open_channel(target: Target) -> grpc.aio.Channel:
    """Open a channel; nothing is sent until the first call.

    Raises:
        ApiError: A file for TLS cannot be used.
    """
    address, secure, local = _parse(target)
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Despite its name this is the time that one attempt may take, TLS included.
        ("grpc.min_reconnect_backoff_ms", 5000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # A proxy of the environment cannot reach this machine's loopback.
        ("grpc.enable_http_proxy", 0 if local else 1),
    ]
    if not secure:
        return grpc.aio.insecure_channel(address, options=options)
    try:
        credentials = channel_credentials(target.tls)
    except TlsError as error:
        raise ApiError(code=grpc.StatusCode.INVALID_ARGUMENT, reason=error.reason, message=error.message) from error
    return grpc.aio.secure_channel(address, credentials, options=options)


def _parse(target: Target) -> tuple[str, bool, bool]:
    address = target.address.rstrip("/")
    for scheme, tls in (("http://", False), ("https://", True)):
        if address.startswith(scheme):
            host = address.removeprefix(scheme)
            with_port = host if ":" in host.rpartition("]")[2] else f"{host}:{443 if tls else 80}"
            return with_port, tls, _is_loopback(with_port)
    local = address.startswith("unix:") or _is_loopback(address)
    return address, bool(target.tls) or not local, local


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
