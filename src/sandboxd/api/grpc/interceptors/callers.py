"""Finds out who calls: checks the bearer token of every RPC of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from typing_extensions import override

from sandboxd.api.grpc.rpc import CallInterceptor, Rpc
from sandboxd.model.caller import Caller


class TokenChecker(Protocol):
    """Checks an authorization header."""

    def check(self, header: str | None) -> Caller:
        """Return who it is; raises UnauthenticatedError."""
        ...


class CallerInterceptor(CallInterceptor):
    """Refuses calls without a good token."""

    def __init__(self, *, tokens: TokenChecker) -> None:
        self._tokens = tokens

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Check the caller, then run the call."""
        rpc.checked_caller = self._tokens.check(rpc.metadata.get("authorization"))
        yield
