"""What hot paths ask of clients and freelancers, as ports: answers are seconds old at most and cost no round trip.

`manager/account_cache.py` implements both; tests give others.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

from sandboxd.model.client import ClientPolicy
from sandboxd.model.ids import ClientId, FreelancerId


class ClientPolicies(Protocol):
    """The clients' policies, at most five seconds old."""

    async def policy(self, client: ClientId) -> ClientPolicy:
        """The client's policy; the standard one for a client that is not known yet.

        Raises:
            DatabaseUnavailableError: It is not known, or was read too long ago, and PostgreSQL does not answer.
        """
        ...


class Standings(Protocol):
    """Whether clients and freelancers may act, at most five seconds old."""

    async def require_active(self, client: ClientId, freelancer: FreelancerId | None) -> None:
        """Let pass who may act. Of `freelancer` None only the client is looked at.

        Who is not known yet passes where the installation registers on first use.

        Raises:
            ClientSuspendedError, ClientDeletedError, ClientUnknownError: The client may not act.
            FreelancerSuspendedError, FreelancerDeletedError, FreelancerUnknownError: The freelancer may not act.
            DatabaseUnavailableError: It is not known, or was read too long ago, and PostgreSQL does not answer.
        """
        ...

    async def wait_for_change(self, client: ClientId | None, *, timeout: timedelta) -> None:
        """Wait until something of the client, or of one of its freelancers, may have changed, or so long.

        Of `client` None any client counts.
        """
        ...
