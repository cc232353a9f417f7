"""What the operator needs of others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from sandboxd.model.ids import IncarnationId


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentIdentity:
    """What an agent proves itself with, PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes
    """Who signs the service's certificate."""


class AgentIdentities(Protocol):
    """Gives agents their identities: the installation's certificate authority."""

    def issue(self, incarnation: IncarnationId) -> AgentIdentity:
        """Make a fresh identity that names this incarnation and nothing else."""
        ...
