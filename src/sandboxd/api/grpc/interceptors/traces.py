"""A span for every RPC, below the caller's where its metadata has a `traceparent`.

It stands inside the check of the caller: who has no token adds nothing to anybody's trace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typing_extensions import override

from sandboxd.api.grpc.rpc import CallInterceptor, Rpc
from sandboxd.model.trace import TRACEPARENT, SpanKind, Tracer, parse_traceparent


class TraceInterceptor(CallInterceptor):
    """Reports RPCs."""

    def __init__(self, *, tracer: Tracer) -> None:
        self._tracer = tracer

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Run the call in its span. The name is one of the contract's methods."""
        if not self._tracer.on:
            yield
            return
        caller = rpc.caller
        with self._tracer.span(
            rpc.method,
            kind=SpanKind.SERVER,
            parent=parse_traceparent(rpc.metadata.get(TRACEPARENT)),
            root=TRACEPARENT not in rpc.metadata,
            attributes={"client": caller.client, "role": caller.role.value},
        ) as span:
            if span.context is not None:
                rpc.facts["trace_id"] = span.context.trace_id
            yield
