"""Serves other replicas: does their errands in conversations of ours. Agents and callers are refused by their names."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import grpc
import grpc.aio
import structlog
from google.rpc import status_pb2
from grpc_status import rpc_status
from typing_extensions import override

from sandboxd.api.grpc.errors import status_of, status_of_bug
from sandboxd.api.grpc.interceptors.failures import make_error_id
from sandboxd.api.grpc.peers.client import MAX_MESSAGE_BYTES
from sandboxd.api.grpc.peers.codec import decode_errand
from sandboxd.api.grpc.peers.identity import PeerIdentity
from sandboxd.api.grpc.peers.wire import not_owner_status
from sandboxd.internal.v1 import replica_pb2 as pb
from sandboxd.internal.v1 import replica_pb2_grpc
from sandboxd.model.errors import ForbiddenError, SandboxdError
from sandboxd.model.ids import SandboxId
from sandboxd.stream.desk import ErrandDesk
from sandboxd.stream.moves import MovedError, OwnedElsewhereError, StoppingError

log = structlog.get_logger("sandboxd.peers")

MAX_CONCURRENT: Final = 2_000
END_GRACE: Final = timedelta(seconds=1)
OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    # The asker's deadline ends an errand, and not gRPC's 30 s for calls that a busy event loop has not taken up.
    ("grpc.server_max_unrequested_time_in_server", 3600),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)

_Context = grpc.aio.ServicerContext[pb.RunErrandRequest, pb.RunErrandResponse]


class PeerRefusedError(ForbiddenError):
    """The other side is not a replica."""

    reason = "PEER_REFUSED"


class PeerServer:
    """One gRPC server for the other replicas."""

    def __init__(self, *, desk: ErrandDesk, replica: str, identity: PeerIdentity) -> None:
        self._identity = identity
        self._server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT)
        servicer = ReplicaServicer(desk=desk, replica=replica, peer_name=identity.name)
        replica_pb2_grpc.add_ReplicaServiceServicer_to_server(servicer, self._server)

    def listen(self, address: str) -> int:
        """Bind an address and return its port.

        Raises:
            OSError: The address is taken, or not ours.
        """
        pair = (self._identity.key, self._identity.certificate)
        credentials = grpc.ssl_server_credentials(
            [pair], root_certificates=self._identity.authority, require_client_auth=True
        )
        try:
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: it is taken, or not an address of this machine") from error

    async def start(self) -> None:
        """Begin to serve."""
        await self._server.start()

    async def stop(self) -> None:
        """Answer what is under way, then end."""
        await self._server.stop(END_GRACE.total_seconds())


class ReplicaServicer(replica_pb2_grpc.ReplicaServiceServicer):
    """Decodes errands, has them done and encodes how they ended."""

    def __init__(self, *, desk: ErrandDesk, replica: str, peer_name: str) -> None:
        self._desk = desk
        self._replica = replica
        self._peer_name = peer_name.encode("ascii")

    @override
    async def RunErrand(self, request: pb.RunErrandRequest, context: _Context) -> pb.RunErrandResponse:
        """Do an errand."""
        status: status_pb2.Status
        try:
            self._check_peer(context)
            if request.replica != self._replica:
                raise OwnedElsewhereError(SandboxId(request.sandbox))
            errand = decode_errand(request)
            accepted = await self._desk.run(errand, acquire=request.acquire)
        except (OwnedElsewhereError, MovedError, StoppingError):
            status = not_owner_status()
        except SandboxdError as error:
            status = status_of(error)
        except Exception:  # the edge of this replica: the other one gets a status
            error_id = make_error_id()
            log.exception("errand.failed_unexpectedly", error_id=error_id)
            status = status_of_bug(error_id=error_id)
        else:
            return pb.RunErrandResponse(repeated=accepted.repeated, turn=accepted.turn or "")
        await context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError("abort raises")

    def _check_peer(self, context: _Context) -> None:
        names = context.auth_context().get("x509_subject_alternative_name", ())
        if self._peer_name not in names:
            log.warning("peer.refused", peer=context.peer())
            raise PeerRefusedError("Your certificate is valid, but it is not a replica's.")
