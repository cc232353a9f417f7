"""What the manager needs of the rows of clients and freelancers. Part of the unit of work (`manager/ports.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from sandboxd.model.client import AccountState, Client, Freelancer, Standing
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SessionId
from sandboxd.model.paging import Page
from sandboxd.model.quota import SandboxesInUse


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountFilter:
    """Which clients, or which freelancers of one client, are meant."""

    states: frozenset[AccountState] = frozenset()
    """Any of these; empty for all but DELETED."""


class ClientRepository(Protocol):
    """The client rows."""

    async def find(self, client: ClientId, *, for_update: bool = False) -> Client | None:
        """One client, or None; `for_update` locks the row until the end of the unit of work."""
        ...

    async def get(self, client: ClientId, *, for_update: bool = False) -> Client:
        """One client.

        Raises:
            ClientNotFoundError: There is none.
        """
        ...

    async def standing(self, client: ClientId, freelancer: FreelancerId) -> Standing:
        """A client, locked until the end of the unit of work, and one of its freelancers; None for what is absent."""
        ...

    async def add(self, client: Client) -> None:
        """Insert a row.

        Raises:
            AccountExistsError: The id is taken, also by a deleted client.
        """
        ...

    async def save(self, client: Client) -> None:
        """Write a changed client over the row of version `client.version - 1`.

        Raises:
            ConflictError: The row has another version: somebody else changed it.
        """
        ...

    async def list(self, where: AccountFilter, *, page_size: int, page_token: str) -> Page[Client]:
        """One page, by create time and id.

        Raises:
            InvalidRequestError: The token is not one of a list with this filter (violation `page_token`).
        """
        ...


class FreelancerRepository(Protocol):
    """The freelancer rows."""

    async def ensure(self, client: ClientId, freelancer: FreelancerId, *, at: datetime) -> None:
        """Make the rows of both where they are absent."""
        ...

    async def find(self, client: ClientId, freelancer: FreelancerId, *, for_update: bool = False) -> Freelancer | None:
        """One freelancer, or None; `for_update` locks the row until the end of the unit of work."""
        ...

    async def get(self, client: ClientId, freelancer: FreelancerId, *, for_update: bool = False) -> Freelancer:
        """One freelancer.

        Raises:
            FreelancerNotFoundError: There is none.
        """
        ...

    async def add(self, freelancer: Freelancer) -> None:
        """Insert a row; its client must be there.

        Raises:
            AccountExistsError: The id is taken, also by a deleted freelancer.
        """
        ...

    async def save(self, freelancer: Freelancer) -> None:
        """Write a changed freelancer over the row of version `freelancer.version - 1`.

        Raises:
            ConflictError: The row has another version: somebody else changed it.
        """
        ...

    async def list(
        self, client: ClientId, where: AccountFilter, *, page_size: int, page_token: str
    ) -> Page[Freelancer]:
        """One page of a client's freelancers, by create time and id.

        Raises:
            InvalidRequestError: The token is not one of a list with this filter (violation `page_token`).
        """
        ...


class QuotaRepository(Protocol):
    """What is in use, for quotas. Counts are true until the commit for whoever holds the client's lock."""

    async def sandboxes(self, client: ClientId, *, freelancer: FreelancerId | None = None) -> SandboxesInUse:
        """The sandboxes that are not terminated, of the client or of one of its freelancers."""
        ...

    async def turns(self, client: ClientId, *, freelancer: FreelancerId | None = None, but: SessionId) -> int:
        """Other sessions that have an open turn, or a place for one."""
        ...

    async def take_place(
        self,
        client: ClientId,
        request_id: RequestId,
        freelancer: FreelancerId,
        session: SessionId,
        *,
        lease: timedelta,
        replica: str,
    ) -> None:
        """Take a place for the turn that a prompt is about to begin; prolonged where the same prompt holds it.

        It counts until it is given back, its lease runs out or the replica dies.
        """
        ...

    async def give_back(self, client: ClientId, request_id: RequestId) -> None:
        """Give a place back, and those whose lease has run out. Absent is success."""
        ...
