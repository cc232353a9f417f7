"""What one gateway is given from outside beside the ledger: keys, policies, a clock. Tests give others."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from sandboxd.gateway.policy import ModelPolicy
from sandboxd.gateway.secret import Secret
from sandboxd.model.ids import ClientId


class Clock(Protocol):
    """Where the present moment comes from."""

    def now(self) -> datetime:
        """Return the present moment, aware, UTC."""
        ...


class ApiKeys(Protocol):
    """The clients' keys of the model API."""

    def key_for(self, client: ClientId) -> Secret | None:
        """Return the key that this client's calls are made with; None where it has none."""
        ...

    def fallback_for(self, client: ClientId) -> Secret | None:
        """Return the key that stands in where the API refuses the other one; None where there is none."""
        ...


class ModelPolicies(Protocol):
    """What each client may call."""

    async def policy_for(self, client: ClientId) -> ModelPolicy:
        """Return the client's allow list, or the standard one.

        Raises:
            UnavailableError: It cannot be told now.
        """
        ...
