"""Who calls, and what they ask for once: the proven identity of a caller and the id of one request of theirs."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sandboxd.model.ids import ClientId, FreelancerId, RequestId


class Role(enum.Enum):
    """What a caller is to its client."""

    PLATFORM = "platform"
    """The platform itself, on behalf of one client."""
    CLIENT_ADMIN = "client_admin"
    FREELANCER = "freelancer"
    """Sees and changes its own sandboxes only."""
    AUDITOR = "auditor"
    """Sees everything of the client and changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A caller whose token was checked."""

    client: ClientId
    subject: str
    """Who it is within the client; for a freelancer the freelancer's id."""
    role: Role

    @property
    def freelancer(self) -> FreelancerId | None:
        """The only freelancer whose things this caller may see; None where it sees all of its client's."""
        return FreelancerId(self.subject) if self.role is Role.FREELANCER else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One mutating call: who makes it, and what makes it idempotent."""

    caller: Caller
    request_id: RequestId
    """Chosen by the caller. Unique for its client: the same id with the same body does the work once."""
    body_hash: bytes
    """SHA-256 of the call's method and of its canonical bytes without the request id."""
