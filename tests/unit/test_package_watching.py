"""Every running sandbox is watched by one replica, and what its agent tells is kept through whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from prometheus_client import CollectorRegistry

from sandboxd.manager.package_metrics import PackageMetrics
from sandboxd.manager.package_watching import PackageWatcher, WatchLimits
from sandboxd.model.errors import AgentUnavailableError, NotImplementedYetError
from sandboxd.model.packages import (
    InstalledPackages,
    Package,
    PackageChange,
    PackageChangeKind,
    PackageKey,
    PackageManager,
    PackagePlace,
)
from sandboxd.model.sandbox import AgentEndpoint, Sandbox
from tests.eventually import eventually
from tests.fakes.manager import NOON
from tests.manager_world import SOON, ManagerWorld, a_request

QUICK = WatchLimits(
    gather=timedelta(milliseconds=20), first_wait=timedelta(milliseconds=10), longest_wait=timedelta(milliseconds=20)
)


def a_package(name: str) -> Package:
    key = PackageKey(manager=PackageManager.DPKG, name=name, directory="/db")
    return Package(key=key, version="1", place=PackagePlace.ROOT)


def a_change(sequence: int, name: str = "tree") -> PackageChange:
    return PackageChange(sequence=sequence, kind=PackageChangeKind.INSTALLED, package=a_package(name), time=NOON)


class World(ManagerWorld):
    """A manager whose replicas watch packages."""

    def __init__(self) -> None:
        super().__init__()
        self.registries: dict[str, CollectorRegistry] = {}

    @asynccontextmanager
    async def watching(
        self, replica: str = "first", *, limits: WatchLimits = QUICK, look_seconds: float = 0.05, most: int = 99
    ) -> AsyncIterator[asyncio.Task[None]]:
        registry = self.registries[replica] = CollectorRegistry()
        core = self.core
        watcher = PackageWatcher(
            units=self.units,
            source=self.packages,
            keeping=core.package_keeping,
            changes=core.changes,
            metrics=PackageMetrics(registry),
            clock=self.clock,
            replica=replica,
            limits=limits,
            look_seconds=look_seconds,
            max_watched=most,
        )
        task = asyncio.create_task(watcher.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def given_running(self, *packages: Package) -> tuple[Sandbox, AgentEndpoint]:
        sandbox = await self.given_active()
        return sandbox, self.answering(sandbox, *packages)

    def answering(self, sandbox: Sandbox, *packages: Package) -> AgentEndpoint:
        endpoint = self.lives(sandbox.id)[-1].endpoint
        assert endpoint is not None
        self.packages.installed[endpoint] = InstalledPackages(packages=packages, sequence=0)
        return endpoint

    def history(self, sandbox: Sandbox) -> list[tuple[int, str]]:
        kept = self.units.rows.package_changes.get(sandbox.id, [])
        return [(one.change.sequence, one.change.package.key.name) for one in kept]

    def shown(self, name: str, replica: str = "first", **labels: str) -> float:
        return self.registries[replica].get_sample_value(name, labels) or 0.0


async def test_what_a_sandbox_tells_is_kept_and_its_row_shows_what_is_unsaved() -> None:
    world = World()
    sandbox, endpoint = await world.given_running()

    async with world.watching():
        for sequence, name in enumerate(("tree", "jq"), start=1):
            world.packages.news(endpoint).put_nowait(a_change(sequence, name))
        await eventually(lambda: world.history(sandbox) == [(1, "tree"), (2, "jq")])

    row = world.row(sandbox.id)
    assert (row.unsaved_packages, row.dirty_since is not None) == (2, True)
    assert world.shown("sandboxd_package_changes_total", manager="dpkg", kind="installed") == 2


async def test_news_that_come_together_are_kept_together() -> None:
    world = World()
    sandbox, endpoint = await world.given_running()

    async with world.watching():
        await eventually(lambda: world.packages.watching)
        await eventually(lambda: sandbox.id in world.units.rows.package_records)
        before = world.units.begun
        for sequence in range(1, 201):
            world.packages.news(endpoint).put_nowait(a_change(sequence, f"p{sequence}"))
        await eventually(lambda: len(world.history(sandbox)) == 200)

    assert world.units.begun - before < 50


async def test_an_agent_that_was_lost_is_asked_again_after_the_last_number_that_was_kept() -> None:
    world = World()
    sandbox, endpoint = await world.given_running()

    async with world.watching():
        news = world.packages.news(endpoint)
        news.put_nowait(a_change(1))
        await eventually(lambda: world.history(sandbox))
        news.put_nowait(AgentUnavailableError("It was lost."))
        await eventually(lambda: len(world.packages.watches) == 2)

    assert [after for _, after in world.packages.watches] == [0, 1]
    assert world.shown("sandboxd_package_watch_ends_total", why="unanswered") == 1


async def test_an_agent_that_says_what_cannot_be_ends_no_other_watch() -> None:
    world = World()
    odd, odd_endpoint = await world.given_running()
    other, endpoint = await world.given_running()

    async with world.watching():
        world.packages.news(odd_endpoint).put_nowait(ValueError("not of this world"))
        await eventually(lambda: world.shown("sandboxd_package_watch_ends_total", why="broken") == 1)
        for told in (odd_endpoint, endpoint):
            world.packages.news(told).put_nowait(a_change(1))
        await eventually(lambda: world.history(odd) and world.history(other))


async def test_an_agent_that_is_older_is_left_alone_for_long() -> None:
    world = World()
    _, endpoint = await world.given_running()

    async with world.watching():
        world.packages.news(endpoint).put_nowait(NotImplementedYetError("WatchPackages is not known."))
        await eventually(lambda: world.shown("sandboxd_package_watch_ends_total", why="refused") == 1)
        await asyncio.sleep(5 * QUICK.longest_wait.total_seconds())

    assert len(world.packages.watches) == 1


async def test_while_the_database_is_away_nothing_is_lost() -> None:
    world = World()
    sandbox, endpoint = await world.given_running()

    async with world.watching():
        await eventually(lambda: world.packages.watching)
        await eventually(lambda: sandbox.id in world.units.rows.package_records)
        world.units.down = True
        world.packages.news(endpoint).put_nowait(a_change(1))
        await eventually(lambda: world.shown("sandboxd_package_watch_ends_total", why="unanswered") >= 1)
        world.units.down = False
        world.packages.news(endpoint).put_nowait(a_change(1))  # an agent tells again what comes after `after`
        await eventually(lambda: world.history(sandbox) == [(1, "tree")])

    assert {after for _, after in world.packages.watches} == {0}


async def test_of_two_replicas_one_watches_and_the_other_follows_when_it_dies() -> None:
    world = World()
    sandbox, endpoint = await world.given_running()

    async with world.watching("first") as first, world.watching("second"):
        await eventually(lambda: world.packages.watching == 1)
        world.packages.news(endpoint).put_nowait(a_change(1))
        await eventually(lambda: world.history(sandbox))
        owner = world.units.rows.package_records[sandbox.id].owner
        assert owner == "first"

        first.cancel()
        world.crash("first")
        await eventually(lambda: world.units.rows.package_records[sandbox.id].owner == "second")
        await eventually(lambda: [after for _, after in world.packages.watches] == [0, 1])


async def test_a_replica_that_only_seemed_dead_stops_when_it_is_replaced() -> None:
    world = World()
    sandbox, endpoint = await world.given_running()

    async with world.watching("first"):
        await eventually(lambda: world.shown("sandboxd_package_watches") == 1)
        await eventually(lambda: world.packages.watching == 1)
        world.crash("first")
        async with world.watching("second"):
            await eventually(lambda: world.shown("sandboxd_package_watches", "second") == 1)
            await eventually(lambda: world.shown("sandboxd_package_watches") == 0)
            await eventually(lambda: world.packages.watching == 1)
            world.packages.news(endpoint).put_nowait(a_change(1))
            await eventually(lambda: world.history(sandbox) == [(1, "tree")])


async def test_a_frozen_sandbox_is_not_watched_and_a_woken_one_is_again() -> None:
    world = World()
    sandbox, _ = await world.given_running()

    async with world.watching():
        await eventually(lambda: world.packages.watching == 1)
        await world.manager.hibernate(sandbox.id, timeout=SOON)
        await eventually(lambda: world.packages.watching == 0)
        await eventually(lambda: world.units.rows.package_records[sandbox.id].owner == "")

        await world.use.use(sandbox.id, timeout=SOON)
        await eventually(lambda: world.packages.watching == 1)


async def test_a_sandboxs_next_life_is_watched_from_its_first_number() -> None:
    world = World()
    sandbox, endpoint = await world.given_running()

    async with world.watching():
        world.packages.news(endpoint).put_nowait(a_change(1))
        await eventually(lambda: world.row(sandbox.id).unsaved_packages == 1)
        await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
        assert world.row(sandbox.id).unsaved_packages == 1  # it tells what was lost
        await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
        world.answering(sandbox)
        await eventually(lambda: world.row(sandbox.id).dirty_since is None)

    assert world.packages.watches[-1][1] == 0
    assert [kept.change.sequence for kept in world.units.rows.package_changes[sandbox.id]] == [1, -1]


async def test_a_replica_watches_no_more_than_it_may() -> None:
    world = World()
    for _ in range(3):
        await world.given_running()

    async with world.watching("first", most=2):
        await eventually(lambda: world.packages.watching == 2)
        async with world.watching("second"):
            await eventually(lambda: world.packages.watching == 3)

    assert sorted(record.owner for record in world.units.rows.package_records.values()) == ["first", "first", "second"]


async def test_who_tells_more_than_can_be_is_made_to_wait() -> None:
    world = World()
    flood, endpoint = await world.given_running()
    other, quiet = await world.given_running()
    limits = WatchLimits(gather=QUICK.gather, batch=10, burst=50, per_second=0.001)

    async with world.watching(limits=limits):
        for sequence in range(1, 201):
            world.packages.news(endpoint).put_nowait(a_change(sequence, f"p{sequence}"))
        await eventually(lambda: world.shown("sandboxd_package_watches_throttled_total") == 1)
        kept = len(world.history(flood))
        world.packages.news(quiet).put_nowait(a_change(1))
        await eventually(lambda: world.history(other))

        assert 50 <= kept == len(world.history(flood)) <= 70


async def test_an_agent_that_never_answers_keeps_no_other_from_being_watched() -> None:
    world = World()
    silent, _ = await world.given_running()
    del world.packages.installed[world.lives(silent.id)[-1].endpoint]  # type: ignore[arg-type]
    other, endpoint = await world.given_running()

    async with world.watching():
        world.packages.news(endpoint).put_nowait(a_change(1))
        await eventually(lambda: world.history(other))


async def test_who_ends_every_call_at_once_is_asked_ever_later_although_it_says_what_is_installed() -> None:
    world = World()
    _, endpoint = await world.given_running()
    limits = WatchLimits(first_wait=timedelta(milliseconds=20), longest_wait=timedelta(seconds=30))

    async with world.watching(limits=limits):
        for number in range(1, 5):
            world.packages.news(endpoint).put_nowait(AgentUnavailableError("Again."))
            await eventually(lambda: world.shown("sandboxd_package_watch_ends_total", why="unanswered") == number)  # noqa: B023
        begun = len(world.packages.watches)
        await asyncio.sleep(0.04)  # the first wait is over, the fifth (160 to 320 ms) is not

        assert len(world.packages.watches) == begun == 4
