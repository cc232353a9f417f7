"""What stands around every RPC of the agent: who may call, and how a failure becomes a status."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from typing_extensions import override

from sandboxd.model.errors import ErrorKind, InternalError, SandboxdError
from sandboxd.stream.agent_port import PeerRefusedError

# Any: handlers of every method pass through here; grpc's types for them are as wide.
Handler = Callable[[Any, Any], Awaitable[Any]]

log = logging.getLogger(__name__)


class Guard(grpc.aio.ServerInterceptor):
    """Lets only the service in, and ends every RPC that fails."""

    def __init__(self, *, client_name: str) -> None:
        """Take the name.

        Args:
            client_name: DNS name that the caller's certificate must carry. Its authority was checked by TLS already.
        """
        self._client_name = client_name.encode("ascii")

    @override
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        encoding = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        method = handler_call_details.method
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._wrap(handler.stream_stream, method), **encoding)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(self._wrap(handler.stream_unary, method), **encoding)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._wrap(handler.unary_stream, method), **encoding)
        return grpc.unary_unary_rpc_method_handler(self._wrap(handler.unary_unary, method), **encoding)

    def _wrap(self, inner: Handler, method: str) -> Handler:
        async def guarded(request: Any, context: Any) -> Any:
            try:
                self._check_peer(context)
                return await inner(request, context)
            except SandboxdError as error:
                if error.kind is ErrorKind.INTERNAL:
                    log.exception("rpc.failed", extra={"fields": {"method": method}})
                failure = error
            except Exception:
                log.exception("rpc.failed", extra={"fields": {"method": method}})
                failure = InternalError("")
            await context.abort_with_status(_to_status(failure))
            return None

        return guarded

    def _check_peer(self, context: Any) -> None:
        names = context.auth_context().get("x509_subject_alternative_name", ())
        if self._client_name not in names:
            raise PeerRefusedError("Your certificate is valid, but it is not the service's: this agent takes no other.")


def _to_status(failure: SandboxdError) -> grpc.Status:
    # Imported by the first failure: the messages that it needs are an eighth of the agent's start.
    from grpc_status import rpc_status

    from sandboxd.agent.wire import to_status

    status: grpc.Status = rpc_status.to_status(to_status(failure))
    return status
