"""Resource names of the contract and the ids in them.

`sandboxes/{sandbox}/sessions/{session}/turns/{turn}`, and `clients/{client}/freelancers/{freelancer}`.

The rules of the contract have checked a name's shape before it comes here.
"""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from sandboxd.model.erasure import ErasureId
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId, SessionId, TurnId


def sandbox_name(sandbox: str) -> str:
    """Name a sandbox."""
    return f"sandboxes/{sandbox}"


def session_name(sandbox: str, session: str) -> str:
    """Name a session."""
    return f"sandboxes/{sandbox}/sessions/{session}"


def turn_name(sandbox: str, session: str, turn: TurnId | None) -> str:
    """Name a turn; empty where there is none."""
    return f"sandboxes/{sandbox}/sessions/{session}/turns/{turn}" if turn else ""


def sandbox_id(name: str) -> SandboxId:
    """Return the sandbox that a sandbox's or a session's name holds."""
    return SandboxId(name.split("/")[1])


def session_id(name: str) -> SessionId:
    """Return the session that a session's name holds."""
    return SessionId(name.split("/")[3])


def client_name(client: ClientId) -> str:
    """Name a client."""
    return f"clients/{client}"


def freelancer_name(client: ClientId, freelancer: FreelancerId) -> str:
    """Name a freelancer."""
    return f"clients/{client}/freelancers/{freelancer}"


def client_id(name: str) -> ClientId:
    """Return the client that a client's name, or the name of something of a client, holds."""
    return ClientId(name.split("/")[1])


def freelancer_id(name: str) -> FreelancerId:
    """Return the freelancer that a freelancer's name holds."""
    return FreelancerId(name.split("/")[3])


def erasure_id(name: str) -> ErasureId:
    """Return the erasure that an erasure's name holds."""
    return ErasureId(name.split("/")[3])


def moment(message: Message, field: str) -> datetime | None:
    """Decode a moment; None where it is unset. The rules of the contract have checked that it is one."""
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC)


def timestamp(moment: datetime | None) -> Timestamp | None:
    """Encode a moment; None stays unset."""
    if moment is None:
        return None
    encoded = Timestamp()
    encoded.FromDatetime(moment)
    return encoded
