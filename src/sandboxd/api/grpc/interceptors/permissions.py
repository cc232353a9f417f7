"""Refuses calls whose role the permission table does not allow, before anything else of the call is looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typing_extensions import override

from sandboxd.api.grpc.permissions import permit
from sandboxd.api.grpc.rpc import CallInterceptor, Rpc


class PermissionInterceptor(CallInterceptor):
    """Enforces the table of `api/grpc/permissions.py`."""

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Check the role, then run the call."""
        rpc.permission = permit(rpc.method, rpc.caller)
        yield
