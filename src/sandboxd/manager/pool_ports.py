"""What the manager needs of the rows of pools and their members. Part of the unit of work (`manager/ports.py`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.pool import EndReason, Member, Pool, PoolId, PoolStatus
from sandboxd.model.sandbox import AgentEndpoint, Tier
from sandboxd.model.startup import MissReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a Create found in the pool: a member, or the reason why not."""

    pool: PoolId | None = None
    member: Member | None = None
    miss: MissReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWork:
    """One pool with all that the refill must know of it."""

    pool: Pool
    members: Sequence[Member]
    may_act: bool
    """Whether its client is active."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPool:
    """One pool as people are shown it."""

    pool: Pool
    wanted: int
    """How many should wait now."""


class PoolBoard(Protocol):
    """Where people look at pools beside the API: in a cluster, by its own tools."""

    async def show(self, pools: Sequence[ShownPool], *, recipe: str) -> None:
        """Show exactly these; what is as it should be costs nothing. `recipe`: what members are made from now.

        Raises:
            UnavailableError: Some could not be shown.
        """
        ...


class PoolRepository(Protocol):
    """The rows of pools and members."""

    async def add(self, pool: Pool) -> None:
        """Insert a pool; its client must be there.

        Raises:
            PoolExistsError: The client has one for this template and tier, possibly one that is being deleted.
        """
        ...

    async def get(self, pool: PoolId, *, client: ClientId, for_update: bool = False) -> Pool:
        """One pool of a client.

        Raises:
            PoolNotFoundError: It has none of this id.
        """
        ...

    async def save(self, pool: Pool) -> None:
        """Write a changed pool over the row of version `pool.version - 1`.

        Raises:
            StalePoolEtagError: The row has another version.
        """
        ...

    async def list(self, client: ClientId, *, at: datetime) -> Sequence[PoolStatus]:
        """The client's pools as they stand, by template and tier: there is at most one of each."""
        ...

    async def total(self, client: ClientId, *, but: PoolId | None = None) -> int:
        """The maxima of the client's pools, added up."""
        ...

    async def claim(self, client: ClientId, template: str, tier: Tier, *, replica: str, at: datetime) -> Claim:
        """Take one member that is ready, this replica's own first; nobody else has it once this is committed.

        One statement; members that other transactions are about to take are passed over and not waited for.
        """
        ...

    async def adopted(self, sandbox: SandboxId) -> None:
        """Forget a claimed member whose backend knows now whose it is. Absent is success."""
        ...

    async def note_use(self, pool: PoolId, *, at: datetime) -> None:
        """Move the pool's `use_time` forward. Absent is success."""
        ...

    async def lead(self, replica: str, *, lease: timedelta) -> bool:
        """Have the duty of refilling, or keep it; False while a replica that lives has it."""
        ...

    async def all(self) -> Sequence[PoolWork]:
        """Every pool of every client with its members, ready for the refill's look."""
        ...

    async def add_member(self, member: Member) -> None:
        """Insert a member that is about to be started."""
        ...

    async def ready(self, sandbox: SandboxId, endpoint: AgentEndpoint, *, replica: str, at: datetime) -> bool:
        """Let a member be claimed that was STARTING; False where it is not any more."""
        ...

    async def end(self, members: Collection[SandboxId], why: EndReason) -> Sequence[SandboxId]:
        """Take members out that are STARTING or READY; answers those that nobody has claimed before."""
        ...

    async def remove_member(self, sandbox: SandboxId) -> None:
        """Forget a member that is ENDING. Absent is success; another state stays."""
        ...

    async def remove(self, pool: PoolId) -> bool:
        """Forget a pool that is being deleted and has no member left."""
        ...

    async def abandon(self, client: ClientId) -> None:
        """Begin to delete all pools of a client, whatever their version."""
        ...

    async def waiting(self) -> Sequence[Member]:
        """All members of all pools that are READY: their agents must be kept supplied."""
        ...

    async def known(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, Member]:
        """Those of the named sandboxes that are members of a pool, in whichever state."""
        ...
