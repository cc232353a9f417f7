"""What a sandbox token says: who spends, from which life of which sandbox, and until when.

The token is a bearer of minutes that only the gateway accepts. Signing and checking it is the gateway room's; this is
the part that the middle may speak about.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId

SANDBOX_TOKEN_LIFETIME: Final = timedelta(minutes=10)
"""How long one token is good. The agent gets a new one at half of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxIdentity:
    """Whom and what a token stands for."""

    client: ClientId
    freelancer: FreelancerId
    sandbox: SandboxId
    incarnation: IncarnationId


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxTokenClaims:
    """A token that was checked."""

    identity: SandboxIdentity
    token_id: str
    """The token's own id (`jti`), for the audit and for revocation."""
    issue_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxToken:
    """A token as it is handed to an agent."""

    text: str = field(repr=False)
    """The bearer itself: a secret, never logged."""
    expire_time: datetime
