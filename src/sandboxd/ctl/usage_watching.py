"""Watching usage over as many calls of WatchUsage as it takes: each goes on after the last cursor that was seen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from sandboxd.ctl.backoff import RetryPolicy
from sandboxd.ctl.connection import Connection
from sandboxd.ctl.staying import stay
from sandboxd.v1 import usage_pb2, usage_pb2_grpc


async def watch_usage(
    connection: Connection, wanted: usage_pb2.UsageFilter | None, *, cursor: str, patience: RetryPolicy
) -> AsyncIterator[usage_pb2.WatchUsageResponse]:
    """Yield what WatchUsage sends, across restarts of the service.

    Raises:
        ApiError: The service refused, or stayed away for longer than patience lasts.
    """
    method = usage_pb2_grpc.UsageServiceStub(connection.channel).WatchUsage
    request = usage_pb2.WatchUsageRequest(filter=wanted, cursor=cursor)
    answers = stay(lambda: method(request, metadata=connection.metadata()), arrived=lambda _: True, patience=patience)
    async with aclosing(answers):
        async for response in answers:
            request.cursor = response.cursor
            yield response
