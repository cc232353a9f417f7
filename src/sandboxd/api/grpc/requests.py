"""The request that a call makes of the middle: who asks, its id, and what it asks."""

from __future__ import annotations

from google.protobuf.message import Message

from sandboxd.api.grpc.body_hash import hash_request
from sandboxd.api.grpc.rpc import current_rpc
from sandboxd.model.caller import Request
from sandboxd.model.ids import RequestId


def request_of(message: Message, request_id: str) -> Request:
    """Return what the present call asks with this message."""
    rpc = current_rpc()
    return Request(
        caller=rpc.caller, request_id=RequestId(request_id), body_hash=hash_request(message, method=rpc.method)
    )
