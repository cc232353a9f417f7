"""UsageService: decode, call, encode."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc.aio
from typing_extensions import override

from sandboxd.api.grpc.admission import Drain, StreamSlots
from sandboxd.api.grpc.codec_live_usage import (
    DIMENSIONS as RESOURCE_DIMENSIONS,
)
from sandboxd.api.grpc.codec_live_usage import (
    KINDS,
    decode_resource_filter,
    encode_news,
    encode_resource_sum,
    read_cursor,
)
from sandboxd.api.grpc.codec_usage import (
    decode_dimensions,
    decode_filter,
    encode_sum,
    encode_usage_event,
    matches_nothing,
)
from sandboxd.api.grpc.rpc import closed_at_end, current_rpc, write
from sandboxd.api.grpc.stay import Stay
from sandboxd.api.grpc.validation import refusal
from sandboxd.manager.usage_watch import UsageNews, UsageWatch
from sandboxd.model.errors import FieldViolation
from sandboxd.model.ids import SandboxId
from sandboxd.model.usage import UsageEventId
from sandboxd.monitor.classes import summarise_usage
from sandboxd.monitor.ports import MAX_PAGE_SIZE, MAX_SUMMARY_ROWS, UsageLedger
from sandboxd.monitor.resource_ports import ResourceLedger
from sandboxd.v1 import usage_pb2 as pb
from sandboxd.v1 import usage_pb2_grpc

DEFAULT_PAGE = 100
NOBODYS = SandboxId("")
"""No sandbox has this id: who may see nothing watches nothing."""
_TAG_BYTES = 8

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here never touch the context's own request and response types."""


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """Serves the ledger and the intervals, read only."""

    def __init__(
        self,
        *,
        ledger: UsageLedger,
        watch: UsageWatch,
        resources: ResourceLedger,
        slots: StreamSlots,
        drain: Drain,
        stay: Stay,
        write_within: timedelta,
    ) -> None:
        self._ledger = ledger
        self._watch = watch
        self._resources = resources
        self._slots = slots
        self._drain = drain
        self._stay = stay
        self._write_within = write_within

    @override
    async def ListUsageEvents(self, request: pb.ListUsageEventsRequest, context: Context) -> pb.ListUsageEventsResponse:
        """List rows of the ledger."""
        caller = current_rpc().caller
        list_tag = _tag(request)
        after = _open_token(request.page_token, list_tag)
        if matches_nothing(request.filter, caller=caller):
            return pb.ListUsageEventsResponse()
        page = await self._ledger.list_events(
            decode_filter(request.filter, caller=caller),
            page_size=min(request.page_size or DEFAULT_PAGE, MAX_PAGE_SIZE),
            after=after,
            newest_first=request.order_by.endswith(" desc"),
        )
        return pb.ListUsageEventsResponse(
            events=[encode_usage_event(event) for event in page.events],
            next_page_token=_make_token(page.next_after, list_tag) if page.next_after else "",
        )

    @override
    async def SummarizeUsage(self, request: pb.SummarizeUsageRequest, context: Context) -> pb.SummarizeUsageResponse:
        """Add rows of the ledger up."""
        caller = current_rpc().caller
        by = decode_dimensions(list(request.group_by))
        if matches_nothing(request.filter, caller=caller):
            return pb.SummarizeUsageResponse(total=pb.UsageSum(tokens=pb.TokenCounts()))
        summary = await summarise_usage(self._ledger, decode_filter(request.filter, caller=caller), by=by)
        return pb.SummarizeUsageResponse(
            sums=[encode_sum(row, by=by) for row in summary.rows], total=encode_sum(summary.total, by=[])
        )

    @override
    async def WatchUsage(self, request: pb.WatchUsageRequest, context: Context) -> None:  # type: ignore[override]  # writes itself
        """Send totals, and what is settled as it is settled."""
        self._drain.refuse()
        rpc = current_rpc()
        where = decode_filter(request.filter, caller=rpc.caller)
        if matches_nothing(request.filter, caller=rpc.caller):
            where = replace(where, sandbox=NOBODYS)
        with self._slots.take(rpc.caller.client):
            news = self._watch.watch(where, after=read_cursor(request.cursor))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(news, context), name="watch-usage-send")
                tasks.create_task(self._drain.end(), name="watch-usage-drain")
                tasks.create_task(self._stay.end(rpc), name="watch-usage-stay")

    @override
    async def SummarizeResources(
        self, request: pb.SummarizeResourcesRequest, context: Context
    ) -> pb.SummarizeResourcesResponse:
        """Add up what sandboxes held."""
        where = decode_resource_filter(request, caller=current_rpc().caller)
        by = [RESOURCE_DIMENSIONS[number] for number in request.group_by]
        if where is None:
            return pb.SummarizeResourcesResponse(total=pb.ResourceSum())
        found = await self._resources.summarise(where, kind=KINDS[request.kind], by=by, limit=MAX_SUMMARY_ROWS)
        return pb.SummarizeResourcesResponse(
            sums=[encode_resource_sum(row, by=by) for row in found.rows],
            total=encode_resource_sum(found.total, by=[]),
        )

    async def _send(self, news: AsyncIterator[UsageNews], context: Context) -> None:
        async with closed_at_end(news):
            async for one in news:
                await write(context, encode_news(one), within=self._write_within)


def _tag(request: pb.ListUsageEventsRequest) -> bytes:
    """Digest what a page token is good for: this filter in this order. A guard against mistakes, not a signature."""
    digest = hashlib.sha256(request.order_by.removeprefix("start_time").encode() + b"\0")
    digest.update(request.filter.SerializeToString(deterministic=True))
    return digest.digest()[:_TAG_BYTES]


def _make_token(after: UsageEventId, tag: bytes) -> str:
    return base64.urlsafe_b64encode(tag + after.encode()).decode().rstrip("=")


def _open_token(token: str, tag: bytes) -> UsageEventId | None:
    if not token:
        return None
    try:
        content = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        after = content[_TAG_BYTES:].decode("ascii")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        content, after = b"", ""
    if not after or content[:_TAG_BYTES] != tag:
        raise refusal(
            [FieldViolation(field="page_token", description="must come from a page with the same filter and order")]
        )
    return UsageEventId(after)
