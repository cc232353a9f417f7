"""Refuses calls that the permission table does not allow, or whose caller is not welcome, before anything else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typing_extensions import override

from sandboxd.api.grpc.permissions import Scope, permit
from sandboxd.api.grpc.ports import Standing
from sandboxd.api.grpc.rpc import CallInterceptor, Rpc
from sandboxd.model.caller import Role


class PermissionInterceptor(CallInterceptor):
    """Enforces the table of `api/grpc/permissions.py`, and the standing of clients and freelancers."""

    def __init__(self, *, standing: Standing) -> None:
        self._standing = standing

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Check the role and the standing, then run the call."""
        caller = rpc.caller
        rpc.permission = permit(rpc.method, caller)
        # Who works across clients must reach a suspended one, too: to lift that.
        if rpc.permission.scope is not Scope.PLATFORM or caller.role is not Role.PLATFORM:
            await self._standing.check(caller)
        yield
