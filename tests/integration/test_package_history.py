"""Two replicas on a real PostgreSQL keep each change of a sandbox's packages once, whatever becomes of one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text
from typing_extensions import override

from sandboxd.bootstrap.sources import SystemClock
from sandboxd.manager.changes import Changes
from sandboxd.manager.package_keeping import PackageKeeping
from sandboxd.manager.package_metrics import PackageMetrics
from sandboxd.manager.package_ports import ChangeSelection
from sandboxd.manager.package_watching import PackageWatcher, WatchLimits
from sandboxd.model.ids import SandboxId
from sandboxd.model.package_history import KeptChange
from sandboxd.model.packages import (
    InstalledPackages,
    Package,
    PackageChange,
    PackageChangeKind,
    PackageKey,
    PackageManager,
    PackageNews,
    PackagePlace,
)
from sandboxd.model.processes import ProcessId
from sandboxd.model.sandbox import AgentEndpoint, Incarnation
from sandboxd.persistence.engine import Database
from tests.contract.postgres_worlds import PostgresUnitsWorld
from tests.contract.test_unit_of_work import NOON, a_life, a_sandbox, given
from tests.eventually import eventually
from tests.fakes.manager import FakeWakeups
from tests.fakes.packages import FakePackageSource


@pytest.fixture
async def world(database: Database, postgres_url: str) -> AsyncIterator[PostgresUnitsWorld]:
    made = PostgresUnitsWorld(database, postgres_url)
    yield made
    await made.end()


LIMITS = WatchLimits(
    batch=40,
    gather=timedelta(milliseconds=20),
    first_wait=timedelta(milliseconds=50),
    longest_wait=timedelta(milliseconds=100),
)
TOLD = 600


def a_change(sequence: int) -> PackageChange:
    key = PackageKey(manager=PackageManager.DPKG, name=f"p{sequence}", directory="/var/lib/dpkg")
    package = Package(key=key, version="1", place=PackagePlace.ROOT)
    return PackageChange(sequence=sequence, kind=PackageChangeKind.INSTALLED, package=package, time=NOON)


class Chatty(FakePackageSource):
    """An agent in which something is installed all the time, and which tells everybody all that it has kept."""

    @override
    async def watch(self, endpoint: AgentEndpoint, *, after: int) -> AsyncGenerator[PackageNews, None]:
        self.watches.append((endpoint, after))
        for sequence in range(after + 1, TOLD + 1):
            if sequence % 40 == 0:
                await asyncio.sleep(0.02)
            yield a_change(sequence)
        packages = [a_change(sequence).package for sequence in range(1, TOLD + 1)]
        yield InstalledPackages(packages=packages, sequence=TOLD)
        await asyncio.Event().wait()


@asynccontextmanager
async def watching(world: PostgresUnitsWorld, source: FakePackageSource, replica: str) -> AsyncIterator[None]:
    changes = Changes(wakeups=FakeWakeups())
    clock = SystemClock()
    watcher = PackageWatcher(
        units=world.units,
        source=source,
        keeping=PackageKeeping(units=world.units, source=source, changes=changes, clock=clock),
        changes=changes,
        metrics=PackageMetrics(CollectorRegistry()),
        clock=clock,
        replica=replica,
        limits=LIMITS,
        look_seconds=0.1,
    )
    task = asyncio.create_task(watcher.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def given_running(world: PostgresUnitsWorld) -> Incarnation:
    sandbox = a_sandbox()
    endpoint = AgentEndpoint(host="127.0.0.1", port=1, server_name="inc.test")
    life = replace(a_life(sandbox), endpoint=endpoint, ready_time=NOON)
    await given(world, sandbox)
    async with world.units.begin() as work:
        await work.incarnations.add(life)
        await work.commit()
    return life


async def history(world: PostgresUnitsWorld, sandbox: SandboxId) -> list[KeptChange]:
    async with world.units.begin() as work:
        return list(await work.packages.changes(sandbox, ChangeSelection(), limit=TOLD + 100))


async def test_a_replica_that_only_seems_dead_and_its_successor_keep_each_change_once(
    world: PostgresUnitsWorld,
) -> None:
    source = Chatty()
    life = await given_running(world)
    await world.given_replica("one")
    await world.given_replica("two")

    async with watching(world, source, "one"), watching(world, source, "two"):
        await eventually(lambda: source.watches, within=20)

        async def some() -> bool:
            return len(await history(world, life.sandbox)) >= 40

        await eventually(some, within=20)
        async with world.units.begin() as work:
            record = await work.packages.get(life.sandbox)
        assert record is not None
        # Its lock is lost with its connection, and it goes on as if nothing had been.
        await world.kill_replica(record.owner)

        async def all_told() -> bool:
            return len(await history(world, life.sandbox)) >= TOLD

        await eventually(all_told, within=60, every=0.1)

        async def looked() -> bool:
            async with world.units.begin() as work:
                found = await work.packages.get(life.sandbox)
            return found is not None and found.looked

        await eventually(looked, within=20)
    kept = await history(world, life.sandbox)

    assert [one.number for one in kept] == list(range(1, TOLD + 1))
    assert [one.change.sequence for one in kept] == list(range(1, TOLD + 1))
    assert len(source.watches) >= 2
    async with world.units.begin() as work:
        shown = await work.sandboxes.get(life.sandbox)
        record = await work.packages.get(life.sandbox)
    assert (shown.unsaved_packages, shown.dirty_since is not None) == (TOLD, True)
    assert record is not None
    assert record.missed == 0


async def test_whose_turn_it_was_is_said_where_only_one_session_had_one(
    world: PostgresUnitsWorld, database: Database
) -> None:
    life = await given_running(world)
    minutes = {"ses-1": (0, 10), "ses-2": (8, None), "ses-3": (60, 61)}
    statements: list[tuple[str, Mapping[str, Any]]] = [
        (
            "INSERT INTO conversations VALUES (:sandbox, 1, '', NULL, :life, 'prc-cli', 'acp', 0, 0, '{}')",
            {"sandbox": life.sandbox, "life": life.id},
        ),
        *(
            (
                """INSERT INTO sessions VALUES (:id, :sandbox, 'acme', 'ada', '', '', '', '', 0, 0, NULL, now(),
                now(), NULL)""",
                {"id": session, "sandbox": life.sandbox},
            )
            for session in minutes
        ),
        *(
            (
                """INSERT INTO turns VALUES (:turn, :id, :sandbox, 1, :turn, :state, NULL, '', :start, :end)""",
                {
                    "turn": f"trn-{session}",
                    "id": session,
                    "sandbox": life.sandbox,
                    "state": "RUNNING" if end is None else "COMPLETED",
                    "start": NOON + timedelta(minutes=begin),
                    "end": None if end is None else NOON + timedelta(minutes=end),
                },
            )
            for session, (begin, end) in minutes.items()
        ),
    ]
    async with database.begin() as connection:
        for statement, values in statements:
            await connection.execute(text(statement), values)

    async def asked(process: str, minute: float, *, of: str = life.id) -> tuple[bool, str | None]:
        at = NOON + timedelta(minutes=minute)
        async with world.units.begin() as work:
            return await work.packages.session_of(
                life.sandbox,
                type(life.id)(of),
                ProcessId(process),
                since=at - timedelta(seconds=20),
                until=at,
            )

    assert await asked("prc-cli", 5) == (True, "ses-1")
    assert await asked("prc-cli", 9) == (True, None)  # two had one
    assert await asked("prc-cli", 10.2) == (True, None)  # just ended: it may have been that one
    assert await asked("prc-cli", 20) == (True, "ses-2")
    assert await asked("prc-cli", -1) == (True, None)  # nobody's
    assert await asked("prc-other", 5) == (False, None)
    assert await asked("prc-cli", 5, of="inc-former") == (False, None)
