"""Watching usage over as many calls of WatchUsage as it takes: each goes on after the last cursor that was seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from sandboxd.ctl.backoff import Backoff, RetryPolicy
from sandboxd.ctl.connection import Connection
from sandboxd.ctl.errors import ApiError, from_rpc_error
from sandboxd.v1 import usage_pb2, usage_pb2_grpc

_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


async def watch_usage(
    connection: Connection, wanted: usage_pb2.UsageFilter | None, *, cursor: str, patience: RetryPolicy
) -> AsyncIterator[usage_pb2.WatchUsageResponse]:
    """Yield what WatchUsage sends, across restarts of the service.

    Raises:
        ApiError: The service refused, or stayed away for longer than patience lasts.
    """
    method = usage_pb2_grpc.UsageServiceStub(connection.channel).WatchUsage
    request = usage_pb2.WatchUsageRequest(filter=wanted, cursor=cursor)
    backoff, first = Backoff(patience), True
    while True:
        call = method(request, metadata=connection.metadata())
        try:
            async for response in call:
                request.cursor, first = response.cursor, False
                backoff.reset()
                yield response
            error = ApiError(code=grpc.StatusCode.UNAVAILABLE, message="The service ended the watch.")
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(failure)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # grpc.aio tells in this way, too, of a call that the service cancelled.
            error = ApiError(code=grpc.StatusCode.CANCELLED, message="The service cancelled the watch.")
        finally:
            call.cancel()
        # Before the first answer there is nobody to be patient for: a wrong address is told at once.
        delay = backoff.next_delay(at_least=error.retry_after) if error.code in _AWAY and not first else None
        if delay is None:
            raise error
        await asyncio.sleep(delay)
