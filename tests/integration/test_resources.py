"""Running compute and storage on a real PostgreSQL: intervals that open and close with the changes, and their sums."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.metering import (
    VOLUME_PERCENT,
    ResourceDimension,
    ResourceFilter,
    ResourceKind,
    ResourceSummary,
    volume_bytes,
)
from sandboxd.model.sandbox import TRANSITIONS, Incarnation, Sandbox, SandboxState, Tier
from sandboxd.persistence.engine import Database
from sandboxd.persistence.resources import PostgresResourceLedger
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from tests.contract.usage_world import an_id

S = SandboxState
BEGIN = datetime(2025, 11, 27, 20, tzinfo=UTC)
UP = frozenset({S.CREATING, S.STARTING, S.RESUMING, S.RESTORING})
DOWN = frozenset({S.PAUSED, S.STOPPED, S.TERMINATED, S.FAILED})


@dataclass
class Life:
    """A sandbox that lives through a history, and what it should be billed for."""

    units: PostgresUnitsOfWork
    sandbox: Sandbox
    now: datetime = BEGIN
    incarnation: Incarnation | None = None
    seen: datetime | None = None
    runtime: Counter[tuple[str, str]] = field(default_factory=Counter)
    storage: Counter[tuple[str, str]] = field(default_factory=Counter)
    stored: bool = False
    had_volumes: bool = False
    """Some life of it was ready; a restore takes them again after TERMINATED."""
    unbilled: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Since the incarnation was last seen: it counts if it did not die meanwhile."""

    def pass_time(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        if self.incarnation is not None and self.incarnation.ready_time is not None:
            state = "HIBERNATED" if self.sandbox.state is S.HIBERNATED else "ACTIVE"
            self.unbilled[(self.sandbox.tier.value, state)] += seconds
        if self.stored:
            for volume in VOLUME_PERCENT:
                self.storage[(self.sandbox.tier.value, volume)] += seconds

    def settle(self, *, lost: bool = False) -> None:
        if not lost:
            self.runtime += self.unbilled
        self.unbilled = Counter()

    async def create(self) -> None:
        async with self.units.begin() as work:
            await work.freelancers.ensure(self.sandbox.client, self.sandbox.freelancer, at=self.now)
            await work.sandboxes.add(self.sandbox)
            self.incarnation = self._new_life()
            await work.incarnations.add(self.incarnation)
            await work.commit()

    async def enter(self, state: SandboxState) -> None:
        async with self.units.begin() as work:
            await work.sandboxes.get(self.sandbox.id, for_update=True)
            if state in DOWN and self.incarnation is not None:
                await work.incarnations.save(replace(self.incarnation, end_time=self.now, end_reason=state.value))
                self.settle()
                self.incarnation = None
            if state in UP:
                if self.incarnation is not None:
                    await work.incarnations.save(replace(self.incarnation, end_time=self.now, end_reason="AGENT_LOST"))
                    self.settle(lost=True)
                self.incarnation = self._new_life()
                await work.incarnations.add(self.incarnation)
            if state is S.ACTIVE and self.incarnation is not None and self.incarnation.ready_time is None:
                self.incarnation = replace(self.incarnation, ready_time=self.now)
                await work.incarnations.save(self.incarnation)
                self.stored = self.had_volumes = True
            before, self.sandbox = self.sandbox.state, self.sandbox.enter(state, at=self.now)
            await work.sandboxes.save(self.sandbox)
            await work.commit()
        self.stored = (self.stored or (state is S.RESTORING and self.had_volumes)) and state is not S.TERMINATED
        # Freezing and thawing close an interval at the present moment: what it held is billed, whatever comes.
        if self.incarnation is not None and (before is S.HIBERNATED) != (state is S.HIBERNATED):
            self.settle()

    async def retier(self, tier: Tier) -> None:
        if tier is self.sandbox.tier or self.sandbox.state is S.RESTORING:  # refused, while it is on its way
            return
        self.sandbox = replace(self.sandbox, tier=tier, update_time=self.now, version=self.sandbox.version + 1)
        async with self.units.begin() as work:
            await work.sandboxes.save(self.sandbox)
            await work.commit()
        self.settle()

    async def look(self) -> None:
        """The backend is asked, and the incarnation lives."""
        if self.incarnation is not None:
            async with self.units.begin() as work:
                await work.incarnations.seen([self.incarnation.id], at=self.now)
                await work.commit()
            self.settle()

    async def lose(self) -> None:
        """The agent dies unseen, and somebody finds out now."""
        if self.incarnation is None or self.incarnation.ready_time is None:
            return
        self.sandbox = replace(self.sandbox, update_time=self.now, version=self.sandbox.version + 1)
        async with self.units.begin() as work:
            await work.incarnations.save(replace(self.incarnation, end_time=self.now, end_reason="AGENT_LOST"))
            await work.sandboxes.save(self.sandbox)
            await work.commit()
        self.settle(lost=True)
        self.incarnation = None

    def _new_life(self) -> Incarnation:
        number = self.sandbox.incarnations + 1
        self.sandbox = replace(self.sandbox, incarnations=number)
        return Incarnation(id=IncarnationId(an_id("inc")), sandbox=self.sandbox.id, number=number, start_time=self.now)


def a_life(database: Database, *, client: str = "acme", freelancer: str = "ada", tier: Tier = Tier.BASIC) -> Life:
    sandbox = Sandbox(
        id=SandboxId(an_id("sbx")),
        client=ClientId(client),
        freelancer=FreelancerId(freelancer),
        tier=tier,
        create_time=BEGIN,
        update_time=BEGIN,
        last_use_time=BEGIN,
    )
    return Life(units=PostgresUnitsOfWork(database), sandbox=sandbox)


async def an_active_life(database: Database, **more: Any) -> Life:  # Any: arguments of a_life
    life = a_life(database, **more)
    await life.create()
    await life.enter(S.ACTIVE)
    return life


async def intervals(database: Database) -> list[dict[str, Any]]:  # Any: columns
    rows = await database.fetch("SELECT * FROM usage_intervals ORDER BY sandbox, kind, volume, number")
    return [dict(row) for row in rows]


async def summary(
    database: Database, kind: ResourceKind, *by: ResourceDimension, limit: int = 1000, **where: Any
) -> ResourceSummary:
    chosen = ResourceFilter(**{"client": ClientId("acme"), **where})
    return await PostgresResourceLedger(database).summarise(chosen, kind=kind, by=by, limit=limit)


def seconds(found: ResourceSummary) -> dict[tuple[str, ...], float]:
    return {row.key: row.span.total_seconds() for row in found.rows}


@pytest.mark.parametrize("seed", range(6))
async def test_after_any_history_the_intervals_are_what_happened_and_never_overlap(
    database: Database, seed: int
) -> None:
    dice = random.Random(seed)
    life = a_life(database, tier=dice.choice([*Tier]))
    await life.create()

    for _ in range(60):
        life.pass_time(dice.choice((0, 1, 7, 3600, 50_000)))
        match dice.random():
            case chance if chance < 0.1:
                await life.retier(dice.choice([*Tier]))
            case chance if chance < 0.25:
                await life.look()
            case chance if chance < 0.35 and life.sandbox.state in {S.ACTIVE, S.HIBERNATED}:
                await life.lose()
            case _:
                ways = sorted(TRANSITIONS[life.sandbox.state], key=lambda state: state.value)
                ways = [way for way in ways if way not in {S.TERMINATING, S.FAILED} or dice.random() < 0.1]
                if life.incarnation is None and life.sandbox.state in {S.ACTIVE, S.HIBERNATED}:
                    ways = [S.STARTING]
                if ways:
                    await life.enter(dice.choice(ways))
    ended = life.now
    life.settle()

    rows = await intervals(database)
    for one, following in pairwise(rows):
        if (one["kind"], one["volume"]) == (following["kind"], following["volume"]):
            assert one["closed_time"] is not None
            assert one["closed_time"] <= following["opened_time"]
    runtime = await summary(
        database, ResourceKind.RUNTIME, ResourceDimension.TIER, ResourceDimension.STATE, start_before=ended
    )
    storage = await summary(
        database, ResourceKind.STORAGE, ResourceDimension.TIER, ResourceDimension.VOLUME, start_before=ended
    )
    by_day = await summary(database, ResourceKind.STORAGE, ResourceDimension.DAY, start_before=ended)
    assert seconds(runtime) == {key: value for key, value in life.runtime.items() if value}
    assert seconds(storage) == {key: value for key, value in life.storage.items() if value}
    expected = sum(volume_bytes(Tier(tier), volume) * value for (tier, volume), value in life.storage.items())
    assert storage.total.megabyte_seconds == expected // 10**6
    assert sum((row.span for row in by_day.rows), timedelta()) == storage.total.span
    assert all(row.span <= 2 * timedelta(days=1) for row in by_day.rows)


async def test_an_interval_is_split_at_midnight_and_cut_to_what_was_asked_for(database: Database) -> None:
    life = await an_active_life(database)
    life.pass_time(30 * 3600)
    await life.enter(S.PAUSING)
    await life.enter(S.PAUSED)

    days = await summary(database, ResourceKind.RUNTIME, ResourceDimension.DAY)
    part = await summary(
        database,
        ResourceKind.RUNTIME,
        ResourceDimension.DAY,
        start_from=BEGIN + timedelta(hours=1),
        start_before=BEGIN + timedelta(hours=5),
    )

    hour = 3600
    assert seconds(days) == {("2025-11-27",): 4 * hour, ("2025-11-28",): 24 * hour, ("2025-11-29",): 2 * hour}
    assert seconds(part) == {("2025-11-27",): 3 * hour, ("2025-11-28",): 1 * hour}
    assert days.total.span == timedelta(hours=30)
    assert (days.total.megabyte_seconds, days.total.sandboxes) == (0, 1)


async def test_an_incarnation_that_died_unseen_counts_until_it_was_last_seen_alive(database: Database) -> None:
    life = await an_active_life(database)
    life.pass_time(60)
    await life.look()
    life.pass_time(3 * 3600)

    await life.lose()

    (runtime,) = [row for row in await intervals(database) if row["kind"] == "RUNTIME"]
    assert runtime["closed_time"] - runtime["opened_time"] == timedelta(seconds=60)
    assert runtime["close_reason"] == "AGENT_LOST"


async def test_sums_hold_what_was_asked_for_and_nothing_of_others(database: Database) -> None:
    for client, freelancer, tier, hours in (
        ("acme", "ada", Tier.BASIC, 1),
        ("acme", "ada", Tier.STANDARD, 2),
        ("acme", "bob", Tier.BASIC, 4),
        ("other", "eve", Tier.BASIC, 8),
    ):
        life = await an_active_life(database, client=client, freelancer=freelancer, tier=tier)
        life.pass_time(hours * 3600)
        await life.enter(S.TERMINATING)
        await life.enter(S.TERMINATED)

    by_freelancer = await summary(database, ResourceKind.RUNTIME, ResourceDimension.FREELANCER)
    of_ada = await summary(database, ResourceKind.STORAGE, freelancer=FreelancerId("ada"))
    longest = await summary(database, ResourceKind.RUNTIME, ResourceDimension.SANDBOX, limit=1)

    assert [(row.key, row.span, row.sandboxes) for row in by_freelancer.rows] == [
        (("bob",), timedelta(hours=4), 1),
        (("ada",), timedelta(hours=3), 2),
    ]
    assert by_freelancer.total.span == timedelta(hours=7)
    assert of_ada.rows == ()
    assert of_ada.total.megabyte_seconds == (10_000 * 1 + 50_000 * 2) * 3600
    assert (len(longest.rows), longest.total.span) == (1, timedelta(hours=7))


async def test_an_open_interval_counts_until_now(database: Database) -> None:
    life = await an_active_life(database)

    found = await summary(database, ResourceKind.RUNTIME, start_from=life.now)

    assert found.total.span >= timedelta(0)
    assert found.total.span <= datetime.now(UTC) - life.now + timedelta(seconds=5) or datetime.now(UTC) < life.now
