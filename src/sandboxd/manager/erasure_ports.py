"""What erasures need from outside: their rows, the data that they erase, and a signature."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from sandboxd.model.erasure import Erasure, ErasureId, Signature
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.paging import Page


class ErasureRepository(Protocol):
    """The rows of erasures, and what they erase in the database. Part of the unit of work.

    Where a freelancer may be named, None stands for the whole client.
    """

    async def add(self, erasure: Erasure) -> None:
        """Insert a row."""
        ...

    async def get(self, erasure: ErasureId, *, for_update: bool = False) -> Erasure:
        """One erasure.

        Raises:
            ErasureNotFoundError: There is none.
        """
        ...

    async def save(self, erasure: Erasure) -> None:
        """Write a changed erasure."""
        ...

    async def list(self, client: ClientId, *, page_size: int, page_token: str) -> Page[Erasure]:
        """One page of a client's erasures, oldest first.

        Raises:
            InvalidRequestError: The token is not one of this list (violation `page_token`).
        """
        ...

    async def unfinished(self, *, limit: int) -> Sequence[Erasure]:
        """Erasures of all clients that have no proof yet, oldest first."""
        ...

    async def sandboxes(self, client: ClientId, freelancer: FreelancerId | None, *, limit: int) -> Sequence[SandboxId]:
        """Sandboxes whose files and texts were not erased yet, terminated or not, by id."""
        ...

    async def erase_sandbox(self, sandbox: SandboxId) -> None:
        """Remove what a person wrote from a sandbox's row, and mark it as erased. The row stays for the ledger."""
        ...

    def kinds(self) -> Sequence[str]:
        """Kinds of data of which rows are deleted, or their texts removed, in the order in which that must happen."""
        ...

    async def erase(self, kind: str, client: ClientId, freelancer: FreelancerId | None, *, limit: int) -> int:
        """Erase some of a kind; answers how many. Call again until it is 0."""
        ...

    async def kept(self, client: ClientId, freelancer: FreelancerId | None) -> Sequence[tuple[str, int, str]]:
        """What is kept: kind, how many, and why."""
        ...

    async def close_freelancers(self, client: ClientId, *, at: datetime) -> int:
        """Make every freelancer of a client DELETED and nameless; answers how many were not yet."""
        ...


class ProofSigner(Protocol):
    """Signs proofs with the service's key."""

    def sign(self, document: bytes) -> Signature:
        """A signature of exactly these bytes."""
        ...
