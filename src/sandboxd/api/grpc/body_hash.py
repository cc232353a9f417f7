"""What makes two requests the same: SHA-256 over the method and the deterministic bytes of what matters in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from sandboxd.v1 import budget_pb2, price_pb2, sandbox_pb2, stream_pb2

SANDBOX_OUTPUT_ONLY = (
    "client", "state", "state_reason", "incarnation", "incarnations", "backend", "create_time", "update_time",
    "last_use_time", "terminate_time",
)  # fmt: skip
BUDGET_OUTPUT_ONLY = ("name", "client", "use", "create_time", "update_time")
OPEN_OF_THIS_CALL = ("after_sequence", "watch_only", "cancel_on_disconnect")
"""Fields of `open` that say how this call listens, and nothing about the session that it makes."""

M = TypeVar("M", bound=Message)


def hash_request(request: Message, *, method: str) -> bytes:
    """Hash a unary request without its request id, and without what a caller cannot set."""
    copy = _without(request, ("request_id",))
    if isinstance(copy, sandbox_pb2.CreateRequest | sandbox_pb2.UpdateRequest):
        unset = (
            (*SANDBOX_OUTPUT_ONLY, "name", "etag")
            if isinstance(copy, sandbox_pb2.CreateRequest)
            else SANDBOX_OUTPUT_ONLY
        )
        for field in unset:
            copy.sandbox.ClearField(field)  # type: ignore[arg-type]  # the names are those of the descriptor
    if isinstance(copy, budget_pb2.SetBudgetRequest):
        for field in BUDGET_OUTPUT_ONLY:
            copy.budget.ClearField(field)  # type: ignore[arg-type]  # the names are those of the descriptor
    if isinstance(copy, price_pb2.AddPriceRequest):
        copy.price.ClearField("name")
    return _digest(method, copy)


def hash_command(command: stream_pb2.StreamRequest, *, session: str) -> bytes:
    """Hash a command of a stream with the session that it is for; `session` is the sandbox's name for `open`."""
    copy = _without(command, ("request_id",))
    if copy.HasField("open"):
        for field in OPEN_OF_THIS_CALL:
            copy.open.ClearField(field)  # type: ignore[arg-type]  # the names are those of the descriptor
    return _digest(f"sandboxd.v1.SandboxService/Stream {session}", copy)


def _without(message: M, fields: Sequence[str]) -> M:
    copy = type(message)()
    copy.CopyFrom(message)
    # A newer client may send what we do not know: it cannot matter here.
    copy.DiscardUnknownFields()
    for field in fields:
        copy.ClearField(field)
    return copy


def _digest(domain: str, message: Message) -> bytes:
    digest = hashlib.sha256(domain.encode() + b"\0")
    digest.update(message.SerializeToString(deterministic=True))
    return digest.digest()
