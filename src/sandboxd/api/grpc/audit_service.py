"""AuditService: decode, call, encode. Read only."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

import grpc.aio
from google.protobuf.message import Message
from typing_extensions import override

from sandboxd.api.grpc.admission import Drain, StreamSlots
from sandboxd.api.grpc.codec_audit import (
    decode_chain,
    decode_filter,
    encode_entry,
    encode_item,
    encode_step,
)
from sandboxd.api.grpc.rpc import closed_at_end, current_rpc, write
from sandboxd.api.grpc.validation import refusal
from sandboxd.model.errors import FieldViolation
from sandboxd.monitor.audit_desk import AuditDesk
from sandboxd.monitor.audit_ports import MAX_AUDIT_PAGE
from sandboxd.v1 import audit_pb2 as pb
from sandboxd.v1 import audit_pb2_grpc

DEFAULT_PAGE: Final = 100
_TAG_BYTES: Final = 8

Item = TypeVar("Item")
Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here write to the context, and never touch its types."""


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Serves the audit's chains."""

    def __init__(self, *, desk: AuditDesk, slots: StreamSlots, drain: Drain, write_within: timedelta) -> None:
        self._desk = desk
        self._slots = slots
        self._drain = drain
        self._write_within = write_within

    @override
    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        """List entries of a chain."""
        caller = current_rpc().caller
        tag = _tag(request, caller.client)
        limit = min(request.page_size or DEFAULT_PAGE, MAX_AUDIT_PAGE)
        records = await self._desk.list(
            caller,
            decode_chain(request.chain),
            decode_filter(request.filter),
            after=_open_token(request.page_token, tag),
            limit=limit,
            newest_first=request.order_by.endswith(" desc"),
        )
        more = _make_token(records[-1].entry.sequence, tag) if len(records) == limit else ""
        return pb.ListAuditEntriesResponse(entries=[encode_entry(record) for record in records], next_page_token=more)

    @override
    async def VerifyAudit(self, request: pb.VerifyAuditRequest, context: Context) -> None:  # type: ignore[override]  # writes itself
        """Check a chain."""
        steps = self._desk.verify(
            current_rpc().caller, decode_chain(request.chain), first=max(1, request.first_sequence)
        )
        await self._send(steps, encode_step, context)

    @override
    async def ExportAudit(self, request: pb.ExportAuditRequest, context: Context) -> None:  # type: ignore[override]  # writes itself
        """Send a chain with what is needed to verify it."""
        items = self._desk.export(
            current_rpc().caller, decode_chain(request.chain), first=max(1, request.first_sequence)
        )
        with_texts = not request.without_texts
        await self._send(items, lambda item: encode_item(item, with_texts=with_texts), context)

    async def _send(self, items: AsyncIterator[Item], encode: Callable[[Item], Message], context: Context) -> None:
        self._drain.refuse()
        # A long read of a chain is a stream like another: it holds one of the client's slots.
        with self._slots.take(current_rpc().caller.client):
            async with closed_at_end(items):
                async for item in items:
                    await write(context, encode(item), within=self._write_within)


def _tag(request: pb.ListAuditEntriesRequest, client: str) -> bytes:
    """What makes a list this one: page tokens are good for it alone."""
    of = pb.ListAuditEntriesRequest(chain=request.chain, filter=request.filter, order_by=request.order_by)
    digest = hashlib.sha256(client.encode() + b"\0" + of.SerializeToString(deterministic=True))
    return digest.digest()[:_TAG_BYTES]


def _make_token(sequence: int, tag: bytes) -> str:
    return base64.urlsafe_b64encode(tag + str(sequence).encode()).decode().rstrip("=")


def _open_token(token: str, tag: bytes) -> int:
    if not token:
        return 0
    try:
        found = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        sequence = int(found[_TAG_BYTES:])
    except (binascii.Error, ValueError):
        found, sequence = b"", 0
    if found[:_TAG_BYTES] != tag or sequence < 1:
        rule = "must be the next_page_token of a page of the same list, with the same chain, filter and order"
        raise refusal([FieldViolation(field="page_token", description=rule)])
    return sequence
