"""Watching sandboxes over as many calls of Watch as it takes: each new one is compared with what was known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from sandboxd.ctl.backoff import RetryPolicy
from sandboxd.ctl.connection import Connection
from sandboxd.ctl.staying import stay
from sandboxd.v1 import sandbox_pb2, sandbox_pb2_grpc

_Call = grpc.aio.UnaryStreamCall[sandbox_pb2.WatchRequest, sandbox_pb2.WatchResponse]


async def watch(
    connection: Connection, request: sandbox_pb2.WatchRequest, *, patience: RetryPolicy
) -> AsyncIterator[sandbox_pb2.WatchResponse]:
    """Yield what Watch sends; after a cut only what is different from before, removals included.

    Raises:
        ApiError: The service refused, or stayed away for longer than patience lasts.
    """
    method = sandbox_pb2_grpc.SandboxServiceStub(connection.channel).Watch
    known: dict[str, sandbox_pb2.Sandbox] = {}
    seen = set[str]()
    first = True

    def call_again() -> _Call:
        seen.clear()
        return method(request, metadata=connection.metadata())

    answers = stay(call_again, arrived=_is_synced, patience=patience)
    async with aclosing(answers):
        async for response in answers:
            for news in _news(response, known, seen, first=first):
                yield news
            first = first and not _is_synced(response)


def _is_synced(response: sandbox_pb2.WatchResponse) -> bool:
    return response.change == sandbox_pb2.WatchResponse.CHANGE_SYNCED


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
