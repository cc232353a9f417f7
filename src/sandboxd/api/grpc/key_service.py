"""KeyService: decode, call, encode. The text of a key passes through here and is in no answer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import grpc.aio
from typing_extensions import override

from sandboxd.api.grpc.names import client_id, timestamp
from sandboxd.api.grpc.requests import request_of
from sandboxd.api.grpc.rpc import current_rpc
from sandboxd.manager.key_ports import KeyHashes
from sandboxd.manager.keys import Keys
from sandboxd.model.api_key import ApiKey, ApiKeyState
from sandboxd.model.caller import Request
from sandboxd.v1 import key_pb2 as pb
from sandboxd.v1 import key_pb2_grpc

DEFAULT_GRACE: Final = timedelta(hours=1)
STATES: Final[Mapping[ApiKeyState, pb.KeyState.ValueType]] = {
    ApiKeyState.SETTING: pb.KEY_STATE_SETTING,
    ApiKeyState.ACTIVE: pb.KEY_STATE_ACTIVE,
    ApiKeyState.REVOKED: pb.KEY_STATE_REVOKED,
}

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here never touch the context's own request and response types."""


class KeyServicer(key_pb2_grpc.KeyServiceServicer):
    """Serves keys."""

    def __init__(self, *, keys: Keys, hashes: KeyHashes) -> None:
        self._keys = keys
        self._hashes = hashes

    @override
    async def SetKey(self, request: pb.SetKeyRequest, context: Context) -> pb.SetKeyResponse:
        """Give a client its key."""
        found = await self._keys.set(self._request(request), client_id(request.name), request.key)
        return pb.SetKeyResponse(key=encode_key(found))

    @override
    async def RotateKey(self, request: pb.RotateKeyRequest, context: Context) -> pb.RotateKeyResponse:
        """Replace a client's key."""
        grace = request.grace.ToTimedelta() if request.HasField("grace") else DEFAULT_GRACE
        found = await self._keys.rotate(self._request(request), client_id(request.name), request.key, grace=grace)
        return pb.RotateKeyResponse(key=encode_key(found))

    @override
    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Context) -> pb.RevokeKeyResponse:
        """Drop a client's key."""
        found = await self._keys.revoke(self._request(request), client_id(request.name))
        return pb.RevokeKeyResponse(key=encode_key(found))

    @override
    async def ListKeys(self, request: pb.ListKeysRequest, context: Context) -> pb.ListKeysResponse:
        """Return what is known of a client's keys."""
        found = await self._keys.list(current_rpc().caller, client_id(request.parent))
        return pb.ListKeysResponse(keys=[encode_key(key) for key in found])

    def _request(self, message: pb.SetKeyRequest | pb.RotateKeyRequest | pb.RevokeKeyRequest) -> Request:
        """Hash the request with a keyed hash in the key's place: who reads the row can try no key against it."""
        plain = type(message)()
        plain.CopyFrom(message)  # type: ignore[arg-type]  # of its own type
        if isinstance(plain, pb.SetKeyRequest | pb.RotateKeyRequest):
            plain.key = self._hashes.digest(plain.key).hex()
        return request_of(plain, message.request_id)


def encode_key(key: ApiKey) -> pb.ApiKey:
    """Encode what is known of a key."""
    return pb.ApiKey(
        name=key.name,
        state=STATES[key.state],
        fingerprint=key.fingerprint,
        previous_fingerprint=key.previous_fingerprint,
        previous_expire_time=timestamp(key.previous_expire_time),
        set_time=timestamp(key.set_time),
        rotate_time=timestamp(key.rotate_time),
        revoke_time=timestamp(key.revoke_time),
        last_use_time=timestamp(key.last_use_time),
    )
