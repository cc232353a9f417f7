"""Watching sandboxes over as many calls of Watch as it takes: each new one is compared with what was known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from sandboxd.ctl.backoff import Backoff, RetryPolicy
from sandboxd.ctl.connection import Connection
from sandboxd.ctl.errors import ApiError, from_rpc_error
from sandboxd.v1 import sandbox_pb2, sandbox_pb2_grpc

_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


async def watch(
    connection: Connection, request: sandbox_pb2.WatchRequest, *, patience: RetryPolicy
) -> AsyncIterator[sandbox_pb2.WatchResponse]:
    """Yield what Watch sends; after a cut only what is different from before, removals included.

    Raises:
        ApiError: The service refused, or stayed away for longer than patience lasts.
    """
    method = sandbox_pb2_grpc.SandboxServiceStub(connection.channel).Watch
    known: dict[str, sandbox_pb2.Sandbox] = {}
    backoff, first = Backoff(patience), True
    while True:
        seen = set[str]()
        call = method(request, metadata=connection.metadata())
        try:
            async for response in call:
                for news in _news(response, known, seen, first=first):
                    yield news
                if response.change == sandbox_pb2.WatchResponse.CHANGE_SYNCED:
                    first = False
                    backoff.reset()
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
        # Before the first full set there is nobody to be patient for: a wrong address is told at once.
        delay = backoff.next_delay(at_least=error.retry_after) if error.code in _AWAY and not first else None
        if delay is None:
            raise error
        await asyncio.sleep(delay)


def _news(
    response: sandbox_pb2.WatchResponse, known: dict[str, sandbox_pb2.Sandbox], seen: set[str], *, first: bool
) -> list[sandbox_pb2.WatchResponse]:
    kind, sandbox = sandbox_pb2.WatchResponse, response.sandbox
    if response.change == kind.CHANGE_SYNCED:
        gone = [known.pop(name) for name in [*known] if name not in seen]
        removed = [kind(change=kind.CHANGE_REMOVED, sandbox=each) for each in gone]
        return [*removed, response] if first else removed
    if response.change == kind.CHANGE_REMOVED:
        return [response] if known.pop(sandbox.name, None) is not None else []
    seen.add(sandbox.name)
    before = known.get(sandbox.name)
    known[sandbox.name] = sandbox
    if response.change == kind.CHANGE_PRESENT and not first:
        return [] if before == sandbox else [kind(change=kind.CHANGE_UPDATED, sandbox=sandbox)]
    return [response]
