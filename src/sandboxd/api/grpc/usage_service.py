"""UsageService: decode, call, encode."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

import grpc.aio
from typing_extensions import override

from sandboxd.api.grpc.codec_usage import (
    decode_dimensions,
    decode_filter,
    encode_sum,
    encode_usage_event,
    matches_nothing,
)
from sandboxd.api.grpc.rpc import current_rpc
from sandboxd.api.grpc.validation import refusal
from sandboxd.model.errors import FieldViolation
from sandboxd.model.usage import UsageEventId
from sandboxd.monitor.ports import MAX_PAGE_SIZE, UsageLedger
from sandboxd.v1 import usage_pb2 as pb
from sandboxd.v1 import usage_pb2_grpc

DEFAULT_PAGE = 100
_TAG_BYTES = 8

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here never touch the context's own request and response types."""


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """Serves the ledger, read only."""

    def __init__(self, *, ledger: UsageLedger) -> None:
        self._ledger = ledger

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
        summary = await self._ledger.summarise(decode_filter(request.filter, caller=caller), by=by)
        return pb.SummarizeUsageResponse(
            sums=[encode_sum(row, by=by) for row in summary.rows], total=encode_sum(summary.total, by=[])
        )


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
