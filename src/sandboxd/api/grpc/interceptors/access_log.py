"""One canonical line for each RPC: what was called, by whom, how it ended and how long it took. No texts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import structlog
from typing_extensions import override

from sandboxd.api.grpc.interceptors.failures import request_id_of
from sandboxd.api.grpc.rpc import CallInterceptor, Rpc

log = structlog.get_logger("sandboxd.api")

_OURS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


class AccessLogInterceptor(CallInterceptor):
    """Writes the line when the call has ended."""

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Run the call, then log it."""
        try:
            yield
        finally:
            facts: dict[str, object] = {"method": rpc.method, "code": rpc.code.name}
            if rpc.reason:
                facts["reason"] = rpc.reason
            facts["duration_ms"] = round((time.monotonic() - rpc.began) * 1000, 1)
            if rpc.checked_caller is not None:
                facts["client"] = rpc.checked_caller.client
                facts["subject"] = rpc.checked_caller.subject
            if request_id := request_id_of(rpc)[:128]:
                facts["request_id"] = request_id
            (log.warning if rpc.code in _OURS else log.info)("rpc", **facts, **rpc.facts)
