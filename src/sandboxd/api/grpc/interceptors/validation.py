"""Checks unary requests against the rules of the contract before a servicer sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typing_extensions import override

from sandboxd.api.grpc.rpc import CallInterceptor, Rpc
from sandboxd.api.grpc.validation import UNDECODABLE, RequestRules, refusal
from sandboxd.model.errors import FieldViolation


class ValidationInterceptor(CallInterceptor):
    """Refuses requests that break rules, with all violations at once. Stream checks its own messages, one by one."""

    def __init__(self, *, rules: RequestRules) -> None:
        self._rules = rules

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Check the request, then run the call."""
        if rpc.undecodable:
            raise refusal([FieldViolation(field="", description=UNDECODABLE)])
        if rpc.request is not None:
            await self._rules.check(rpc.request)
        yield
