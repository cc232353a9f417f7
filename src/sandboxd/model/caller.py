"""Who calls, and which request it is: what the edges hand to the middle with every call."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sandboxd.model.ids import ClientId, FreelancerId, RequestId


class Role(enum.Enum):
    """What a caller may see. The full matrix of who may do what comes with tenancy (the next issue)."""

    CLIENT = "client"
    """The client's own service, or one of its people who manage: sees all of the client's sandboxes."""
    FREELANCER = "freelancer"
    """A person who works in sandboxes: sees its own sandboxes at the client alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A caller whose token was checked."""

    client: ClientId
    """The tenant. What belongs to another one does not exist for this caller."""
    subject: str
    """Who it is at the client: the freelancer's id for the role FREELANCER, any name for the role CLIENT."""
    role: Role

    @property
    def freelancer(self) -> FreelancerId | None:
        """The one freelancer that this caller may see and act for; None where it may see all of the client's."""
        return FreelancerId(self.subject) if self.role is Role.FREELANCER else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One mutating call: who makes it, and what makes it idempotent."""

    caller: Caller
    request_id: RequestId
    """Chosen by the caller. Unique for its client: the same id with the same body does the work once."""
    body_hash: bytes
    """SHA-256 of the call's method and of its canonical bytes without the request id."""
