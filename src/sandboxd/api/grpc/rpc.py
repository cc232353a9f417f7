"""One RPC on its way through the frame: what the interceptors and the servicers know of it, and how they wrap it."""

from __future__ import annotations

import abc
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from typing_extensions import override

from sandboxd.api.callers.proof import Proof
from sandboxd.api.grpc.errors import ReaderTooSlowError
from sandboxd.api.grpc.permissions import Permission
from sandboxd.model.caller import Caller
from sandboxd.model.errors import UnauthenticatedError

OUR_PACKAGE = "sandboxd.v1."
"""Health and reflection stand beside the frame: they are asked by machines that have no token."""


@dataclass(slots=True, kw_only=True)
class Rpc:
    """One RPC; each interceptor adds what it knows."""

    method: str
    """`sandboxd.v1.SandboxService/Create`."""
    streaming: bool
    """True where requests or responses are streamed; such a call has no deadline of ours."""
    context: grpc.aio.ServicerContext[Any, Any]
    metadata: dict[str, str]
    """Text metadata of the call, keys in lower case. Never logged: it holds the token."""
    request: Message | None
    """The request; None where requests are streamed."""
    response: Message | None = None
    """The response of a unary call, once there is one."""
    on_record: bool = False
    """True once an intent stands for the call, so that its end is that intent's outcome."""
    target: str = ""
    """Resource name that a stream is about; that of other calls is in their request."""
    undecodable: bool = False
    """True where the request's bytes are no message; the frame refuses it."""
    began: float = field(default_factory=time.monotonic)
    checked_caller: Caller | None = None
    proof: Proof | None = None
    """What proved the caller, and for how long."""
    permission: Permission | None = None
    """The RPC's row of the permission table, once the caller was let through."""
    expires: float | None = None
    """Moment on the monotonic clock at which the budget is spent; None for none."""
    facts: dict[str, str | int | float | bool] = field(default_factory=dict)
    """What the canonical line shall say: names and numbers, never texts."""
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""

    @property
    def caller(self) -> Caller:
        """Who calls.

        Raises:
            UnauthenticatedError: Nobody was checked; the auth interceptor is missing from the frame.
        """
        if self.checked_caller is None:
            raise UnauthenticatedError("This call needs an authorization header.")
        return self.checked_caller

    def remaining(self, *, at_most: timedelta) -> timedelta:
        """Return what is left of the caller's budget, bounded."""
        if self.expires is None:
            return at_most
        return min(at_most, timedelta(seconds=max(0.0, self.expires - time.monotonic())))


_current: ContextVar[Rpc] = ContextVar("sandboxd_rpc")


def current_rpc() -> Rpc:
    """Return the RPC that this task serves."""
    return _current.get()


@asynccontextmanager
async def closed_at_end(source: AsyncIterator[Any]) -> AsyncIterator[None]:
    """Close an async generator when its reader stops, and not when it happens to be collected. Any: of any items."""
    try:
        yield
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


Handler = Callable[[Any, Any], Any]
"""A servicer's method: (request or iterator, context). Its types differ by method; grpcio checks none of them."""


class CallInterceptor(grpc.aio.ServerInterceptor, abc.ABC):
    """An interceptor that wraps a whole RPC of ours, of any kind, in one async context manager.

    Streaming methods of our servicers are coroutines that write to the context, so every kind is one awaitable.
    """

    @abc.abstractmethod
    def around(self, rpc: Rpc) -> AbstractAsyncContextManager[None]:
        """Run before, and after, the rest of the call. What is raised here ends the call."""

    @override
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of our own services; pass others through."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.removeprefix("/")
        if handler is None or not method.startswith(OUR_PACKAGE):
            return handler
        # Any: the makers differ in types that depend on the kind.
        make: Any
        inner: Handler | None
        if handler.request_streaming:
            make, inner = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        elif handler.response_streaming:
            make, inner = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        else:
            make, inner = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        if inner is None:
            raise TypeError(f"{method} is of a kind that the frame does not serve")
        wrapped = self._wrap(inner, method=method, handler=handler)
        decode = handler.request_deserializer
        forgiving = decode if isinstance(decode, _ForgivingDecoder) else _ForgivingDecoder(decode)
        made: grpc.RpcMethodHandler[Any, Any] = make(wrapped, forgiving, handler.response_serializer)
        return made

    def _wrap(self, inner: Handler, *, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> Handler:
        async def wrapped(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            rpc = _current.get(None)
            if rpc is None or rpc.context is not context:
                rpc = Rpc(
                    method=method,
                    streaming=handler.request_streaming or handler.response_streaming,
                    context=context,
                    metadata=_text_metadata(context),
                    request=request if isinstance(request, Message) else None,
                    undecodable=isinstance(request, Undecodable),
                )
                _current.set(rpc)
            async with self.around(rpc):
                answer = await inner(request, context)
                rpc.response = answer if isinstance(answer, Message) else None
                return answer

        return wrapped


class ClientGoneError(Exception):
    """The client vanished while something was written to it."""


async def write(context: grpc.aio.ServicerContext[Any, Any], message: Message, *, within: timedelta) -> None:
    """Write one response. grpc.aio raises an internal error of its own where the client is gone.

    A client that does not read lets the writer wait: gRPC takes a message when the ones before it fit into its buffer,
    64 KiB a stream, and what the connection has granted.

    Raises:
        ClientGoneError: Nobody is there to read it.
        ReaderTooSlowError: It was not taken within that time.
    """
    try:
        async with asyncio.timeout(within.total_seconds()):
            await context.write(message)
    except TimeoutError as error:
        raise ReaderTooSlowError(within) from error
    except grpc.aio.InternalError as error:
        raise ClientGoneError from error


class Undecodable:
    """Stands for a request whose bytes are no message, until the frame refuses it."""


class _ForgivingDecoder:
    """Decodes requests. grpcio would answer bad bytes with UNKNOWN and the name of an exception."""

    def __init__(self, decode: Callable[[bytes], Any] | None) -> None:
        self._decode = decode

    def __call__(self, data: bytes) -> Any:
        try:
            return data if self._decode is None else self._decode(data)
        except DecodeError:
            return Undecodable()


def _text_metadata(context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            # A key that comes twice is one list, as HTTP has it. Whoever stands before us may have looked at the first
            # and we at the last; joined, neither is a good token or name.
            found[key] = f"{found[key]},{value}" if key in found else value
    return found
