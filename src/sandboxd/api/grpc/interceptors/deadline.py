"""Gives every unary RPC a deadline: the caller's, or ours where it gave none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from typing_extensions import override

from sandboxd.api.grpc.rpc import CallInterceptor, Rpc
from sandboxd.model.errors import DeadlineError


class DeadlineInterceptor(CallInterceptor):
    """Ends a call when its budget is spent; streams live until one side ends them."""

    def __init__(self, *, default: timedelta) -> None:
        self._default = default

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Run the call within its budget."""
        given: float | None = rpc.context.time_remaining()
        if given is None and rpc.streaming:
            yield
            return
        budget = self._default.total_seconds() if given is None else given
        rpc.expires = time.monotonic() + budget
        scope = asyncio.timeout(budget)
        try:
            async with scope:
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineError(
                "The call did not finish within its deadline. What it began goes on: repeat it with its request id.",
                deadline_seconds=f"{budget:.3f}",
            ) from error
