"""Finds out who calls: checks the bearer token, or the client certificate, of every RPC of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from typing_extensions import override

from sandboxd.api.callers.proof import CLIENT_METADATA, Proof, Shown, acting_for
from sandboxd.api.grpc.rpc import CallInterceptor, Rpc


class CallerChecker(Protocol):
    """Checks what a call shows (`api/callers/door.py`)."""

    async def check(self, shown: Shown) -> Proof:
        """Return who it is; raises UnauthenticatedError, or UnavailableError where nobody can tell now."""
        ...


class CallerInterceptor(CallInterceptor):
    """Refuses calls that do not prove who makes them."""

    def __init__(self, *, callers: CallerChecker) -> None:
        self._callers = callers

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Check the caller, then run the call."""
        client = rpc.metadata.get(CLIENT_METADATA)
        proof = await self._callers.check(
            Shown(authorization=rpc.metadata.get("authorization"), peer=rpc.context.auth_context)
        )
        # Known from here on, also to the log, where the client that it asks for is refused.
        rpc.proof, rpc.checked_caller = proof, proof.caller
        rpc.checked_caller = acting_for(proof.caller, client)
        yield
