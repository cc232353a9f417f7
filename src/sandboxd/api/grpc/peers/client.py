"""Asks other replicas, over one channel each. A replica that does not answer in time is reported, never waited for."""

from __future__ import annotations

from collections import OrderedDict
from datetime import timedelta
from typing import Final

import grpc
import grpc.aio
from typing_extensions import override

from sandboxd.api.grpc.peers.codec import encode_errand
from sandboxd.api.grpc.peers.identity import PeerIdentity
from sandboxd.api.grpc.peers.wire import error_of
from sandboxd.internal.v1 import replica_pb2_grpc
from sandboxd.model.ids import TurnId
from sandboxd.stream.errands import Errand
from sandboxd.stream.moves import OwnedElsewhereError, PeerUnavailableError
from sandboxd.stream.opening import Accepted
from sandboxd.stream.ports import Holder, Peers

MAX_CHANNELS: Final = 64
"""Replicas that are connected at the same time; the one asked longest ago goes first."""
MAX_MESSAGE_BYTES: Final = 20 << 20
"""The largest prompt, 16 MiB, and what is around it."""
OPTIONS: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # the time that one attempt may take, TLS included
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)


class GrpcPeers(Peers):
    """The way to other replicas."""

    def __init__(self, identity: PeerIdentity) -> None:
        self._credentials = grpc.ssl_channel_credentials(
            root_certificates=identity.authority, private_key=identity.key, certificate_chain=identity.certificate
        )
        self._options = (*OPTIONS, ("grpc.ssl_target_name_override", identity.name))
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()

    @override
    async def ask(self, peer: Holder, errand: Errand, *, acquire: bool, timeout: timedelta) -> Accepted:
        request = encode_errand(errand, replica=peer.replica, acquire=acquire)
        stub: replica_pb2_grpc.ReplicaServiceAsyncStub = replica_pb2_grpc.ReplicaServiceStub(
            await self._channel(peer.address)
        )
        try:
            answer = await stub.RunErrand(request, timeout=timeout.total_seconds())
        except grpc.aio.AioRpcError as failure:
            error = error_of(failure)
            raise OwnedElsewhereError(errand.sandbox) if error is None else error from failure
        except grpc.aio.UsageError as error:  # its channel was closed under it
            raise PeerUnavailableError from error
        return Accepted(repeated=answer.repeated, turn=TurnId(answer.turn) if answer.turn else None)

    async def close(self) -> None:
        """Close all connections."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close()

    async def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = grpc.aio.secure_channel(address, self._credentials, options=self._options)
            self._channels[address] = channel
        self._channels.move_to_end(address)
        if len(self._channels) > MAX_CHANNELS:
            _, oldest = self._channels.popitem(last=False)
            await oldest.close()
        return channel
