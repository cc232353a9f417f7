"""Warm pools: sandboxes that were started before anybody asked for them. What there should be is decided here, purely.

A member is a full placement with its own sandbox id and incarnation, and an agent that answers. It belongs to a client
and to no freelancer until a Create claims it; from then on it is a sandbox like any other, and no member any more.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, NewType

from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.sandbox import AgentEndpoint, Tier

PoolId = NewType("PoolId", str)
"""Id of one pool: `pol-` and 26 ULID characters."""

POOLED: Final = FreelancerId("POOL")
"""Stands where a member's freelancer is asked for. No freelancer can have this name: theirs are of lower case."""
TEMPLATE: Final = "default"
"""What sandboxes are made from; the only template as yet."""
MAX_SIZE: Final = 10_000
DEFAULT_IDLE: Final = timedelta(hours=4)
"""A pool that nobody asked for so long shrinks to its minimum."""
DEFAULT_AGE: Final = timedelta(hours=24)
"""A member that has waited for so long is replaced: certificates, packages and memory grow old."""


class MemberState(enum.Enum):
    """Where a member is in its short life."""

    STARTING = "STARTING"
    """Planned; being placed until its agent answers."""
    READY = "READY"
    """It waits to be claimed."""
    CLAIMED = "CLAIMED"
    """A sandbox has taken its ids; the backend does not know yet whose it is."""
    ENDING = "ENDING"
    """It is not wanted any more, and nobody can claim it."""


class EndReason(enum.Enum):
    """Why a member ended unclaimed. Also the label of a metric: a closed set."""

    STALE = "stale"
    """Made from what is not the template any more."""
    OLD = "old"
    LOST = "lost"
    """Its agent is gone."""
    SHRUNK = "shrunk"
    """The pool wants fewer: it was set so, is idle, or is being deleted."""
    FAILED = "failed"
    """It never came up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSize:
    """How many members a pool keeps."""

    min: int = 0
    """So many wait also when nobody asks."""
    target: int = 0
    """So many wait while the pool is used."""
    max: int = 0
    """Never more than so many exist unclaimed, those on their way and on their way out included."""

    @property
    def valid(self) -> bool:
        """True when they go together."""
        return 0 <= self.min <= self.target <= self.max <= MAX_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The warm sandboxes of one client, template and tier."""

    id: PoolId
    client: ClientId
    template: str = TEMPLATE
    tier: Tier = Tier.BASIC
    size: PoolSize
    idle_timeout: timedelta = DEFAULT_IDLE
    max_age: timedelta = DEFAULT_AGE
    deleting: bool = False
    """True from its deletion on, until its last member has ended."""
    create_time: datetime
    update_time: datetime
    use_time: datetime
    """When a Create asked it last, whether it found a member or not; written at most every half minute."""
    version: int = 1

    def wanted(self, at: datetime) -> int:
        """How many members should wait now."""
        if self.deleting:
            return 0
        return self.size.min if at - self.use_time >= self.idle_timeout else self.size.target

    def resized(self, size: PoolSize, *, idle_timeout: timedelta, max_age: timedelta, at: datetime) -> Pool:
        """Return this pool with other numbers."""
        return replace(
            self,
            size=size,
            idle_timeout=idle_timeout,
            max_age=max_age,
            update_time=at,
            use_time=at,
            version=self.version + 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One sandbox of a pool."""

    sandbox: SandboxId
    incarnation: IncarnationId
    pool: PoolId
    client: ClientId
    tier: Tier
    state: MemberState = MemberState.STARTING
    endpoint: AgentEndpoint | None = None
    recipe: str = ""
    """What it was made from, in the backend's words."""
    replica: str
    """Whose connection to its agent is open: the replica that made it."""
    start_time: datetime
    ready_time: datetime | None = None
    end_reason: EndReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCounts:
    """Members by state."""

    starting: int = 0
    ready: int = 0
    claimed: int = 0
    ending: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """A pool as it stands."""

    pool: Pool
    counts: PoolCounts
    wanted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartLimits:
    """How many starts there may be, of one replica."""

    total: int = 16
    """At once, of all clients."""
    per_client: int = 8
    """At once, of one client."""
    max_waiting: int = 1000
    """Waiting, of all clients."""
    max_waiting_per_client: int = 200
    """Waiting, of one client."""
    patience: timedelta = timedelta(seconds=30)
    """How long one may wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefillLimits:
    """How fast pools are filled."""

    at_once: int = 4
    """Members that are being started at a time."""
    per_second: float = 10.0
    """Starts that are begun in a second at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What to do with a pool now."""

    make: int = 0
    end: Sequence[tuple[Member, EndReason]] = ()


def count_members(members: Sequence[Member]) -> PoolCounts:
    """Count members by state."""
    states = [member.state for member in members]
    return PoolCounts(
        starting=states.count(MemberState.STARTING),
        ready=states.count(MemberState.READY),
        claimed=states.count(MemberState.CLAIMED),
        ending=states.count(MemberState.ENDING),
    )


def plan_pool(pool: Pool, members: Sequence[Member], *, recipe: str, may_act: bool, at: datetime) -> PoolPlan:
    """Say how many members to make, and which to end.

    Old and stale members go on serving while their successors start, as far as `max` leaves room for both; where it
    leaves none, they make room one by one.

    Args:
        pool: What is wanted.
        members: All that there are of it.
        recipe: What a member would be made from now; empty while that is not known, and nothing is made.
        may_act: Whether its client may act: a suspended one keeps nothing warm.
        at: Now.
    """
    wanted = pool.wanted(at) if may_act else 0
    alive = [member for member in members if member.state in (MemberState.STARTING, MemberState.READY)]
    ending = sum(member.state is MemberState.ENDING for member in members)
    past = {member.sandbox: why for member in alive if (why := _past(pool, member, recipe, at)) is not None}
    fresh = [member for member in alive if member.sandbox not in past]
    worn = sorted((member for member in alive if member.sandbox in past), key=lambda member: member.start_time)
    # Those on their way go first: nobody waits for them yet, and they cost what they have not cost so far.
    fresh.sort(key=lambda member: (member.state is MemberState.STARTING, member.start_time), reverse=True)
    surplus = [(member, EndReason.SHRUNK) for member in fresh[: max(0, len(fresh) - wanted)]]
    kept = len(fresh) - len(surplus)
    ready = sum(member.state is MemberState.READY for member in fresh)
    room = max(0, pool.size.max - len(alive) - ending)
    missing = max(0, wanted - kept)
    # A worn one is ended as soon as a fresh one waits in its place, or when it stands where one could start.
    replaced = max(0, len(worn) - max(0, wanted - ready))
    if missing > room and worn and not ending:
        replaced = max(replaced, 1)
    return PoolPlan(
        make=min(missing, room) if recipe else 0,
        end=[*surplus, *((member, past[member.sandbox]) for member in worn[:replaced])],
    )


def _past(pool: Pool, member: Member, recipe: str, at: datetime) -> EndReason | None:
    if (recipe and member.recipe != recipe) or member.tier is not pool.tier:
        return EndReason.STALE
    return EndReason.OLD if at - member.start_time >= pool.max_age else None
