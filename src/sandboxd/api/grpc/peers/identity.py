"""What a replica shows to other replicas."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentity:
    """A replica's certificate, and what it expects of others."""

    certificate: bytes
    """PEM chain; good for serving and for calling."""
    key: bytes = field(repr=False)
    authority: bytes
    """PEM: who signs replicas' certificates. It signs agents' too, so the name below decides."""
    name: str
    """DNS name that a replica's certificate carries and no other one does."""
