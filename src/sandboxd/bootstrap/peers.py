"""How this replica is reached by the others, and how it reaches them."""

from __future__ import annotations

from sandboxd.api.grpc.peers.client import GrpcPeers
from sandboxd.api.grpc.peers.identity import PeerIdentity
from sandboxd.api.grpc.peers.server import PeerServer
from sandboxd.backends.certificates import REPLICA_NAME, CertificateAuthority
from sandboxd.settings import Settings
from sandboxd.stream.desk import ErrandDesk


class PeerRoom:
    """Server and client among replicas, with one identity."""

    def __init__(self, settings: Settings, *, authority: CertificateAuthority, desk: ErrandDesk, replica: str) -> None:
        self._listen = settings.peer_listen
        self._told = settings.peer_address
        issued = authority.issue_replica()
        identity = PeerIdentity(
            certificate=issued.certificate, key=issued.key, authority=authority.certificate, name=REPLICA_NAME
        )
        self.server = PeerServer(desk=desk, replica=replica, identity=identity)
        self.client = GrpcPeers(identity)

    def listen(self) -> str:
        """Bind, and answer the address that other replicas are to be told.

        Raises:
            OSError: The address is taken.
        """
        port = self.server.listen(self._listen)
        return told_address(self._listen, told=self._told, port=port)

    async def stop(self) -> None:
        """End both sides."""
        await self.server.stop()
        await self.client.close()


def told_address(listen: str, *, told: str, port: int) -> str:
    """The address to tell: what the settings say, with the port that was bound where they leave it open."""
    host, colon, given = told.rpartition(":")
    if not told:
        return f"{listen.rpartition(':')[0]}:{port}"
    if not colon or told.endswith("]"):
        return f"{told}:{port}"
    return told if int(given) else f"{host}:{port}"
