"""Who may look at the packages of which sandbox, and how a list of them is paged."""

import asyncio

import pytest

from sandboxd.manager.package_keeping import PackageKeeping
from sandboxd.manager.package_ports import ChangeSelection, Watched
from sandboxd.manager.package_tidings import PackageTelling, PackageTidings
from sandboxd.manager.packages import Packages, PackageSelection, SandboxNotRunningError
from sandboxd.model.caller import Role
from sandboxd.model.errors import InvalidRequestError, SandboxNotFoundError
from sandboxd.model.packages import (
    InstalledPackages,
    Package,
    PackageChange,
    PackageChangeKind,
    PackageKey,
    PackageManager,
    PackagePlace,
)
from sandboxd.model.sandbox import Sandbox
from tests.eventually import eventually
from tests.fakes.manager import NOON
from tests.fakes.packages import FakePackageSource
from tests.manager_world import SOON, ManagerWorld, a_caller, a_request

ADA = a_caller(subject="ada", role=Role.FREELANCER)
BOB = a_caller(subject="bob", role=Role.FREELANCER)
EVERYTHING = PackageSelection()


def a_package(manager: PackageManager, name: str, place: PackagePlace, *, initial: bool = False) -> Package:
    key = PackageKey(manager=manager, name=name, directory="/somewhere")
    return Package(key=key, version="1", place=place, initial=initial)


INSTALLED = [
    a_package(PackageManager.PIP, "rich", PackagePlace.HOME),
    a_package(PackageManager.DPKG, "tree", PackagePlace.ROOT),
    a_package(PackageManager.DPKG, "bash", PackagePlace.ROOT, initial=True),
]


class World:
    """A running sandbox of Ada's."""

    def __init__(self) -> None:
        self.manager = ManagerWorld()
        self.source = FakePackageSource()
        self.packages = Packages(units=self.manager.units, source=self.source)

    async def given_running(self) -> Sandbox:
        sandbox = await self.manager.given_active(ADA)
        endpoint = self.manager.lives(sandbox.id)[-1].endpoint
        assert endpoint is not None
        self.source.installed[endpoint] = InstalledPackages(packages=INSTALLED, sequence=0, complete=False)
        return sandbox


@pytest.fixture
def world() -> World:
    return World()


async def test_packages_come_by_manager_and_name_in_pages(world: World) -> None:
    sandbox = await world.given_running()

    first = await world.packages.list(ADA, sandbox.id, EVERYTHING, page_size=2)
    second = await world.packages.list(ADA, sandbox.id, EVERYTHING, page_size=2, page_token=first.next_token)

    assert [[one.package.key.name for one in page.packages] for page in (first, second)] == [["bash", "tree"], ["rich"]]
    assert (second.next_token, second.complete) == ("", False)


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (PackageSelection(unsaved=True), ["tree"]),
        (PackageSelection(manager=PackageManager.PIP), ["rich"]),
        (PackageSelection(manager=PackageManager.PIP, unsaved=True), []),
    ],
)
async def test_a_selection_leaves_out_the_rest(world: World, selection: PackageSelection, names: list[str]) -> None:
    sandbox = await world.given_running()

    page = await world.packages.list(ADA, sandbox.id, selection)

    assert [one.package.key.name for one in page.packages] == names


async def test_another_ones_sandbox_does_not_exist(world: World) -> None:
    sandbox = await world.given_running()

    for stranger in (BOB, a_caller(client="other")):
        with pytest.raises(SandboxNotFoundError):
            await world.packages.list(stranger, sandbox.id, EVERYTHING)


async def test_looking_wakes_nothing_and_is_no_use(world: World) -> None:
    paused = await world.manager.given_paused()
    running = await world.given_running()
    before = dict(world.manager.units.rows.sandboxes)

    with pytest.raises(SandboxNotRunningError):
        await world.packages.list(a_caller(), paused.id, EVERYTHING)
    await world.packages.list(ADA, running.id, EVERYTHING)

    assert world.manager.units.rows.sandboxes == before


async def known(world: World, sandbox: Sandbox, *changes: PackageChange) -> None:
    """The service watched it and was told all that is installed."""
    (life,) = world.manager.lives(sandbox.id)
    watching = PackageKeeping(
        units=world.manager.units,
        source=world.source,
        changes=world.manager.core.changes,
        clock=world.manager.clock,
    )
    async with world.manager.units.begin() as work:
        (watched,) = await work.packages.claim(replica="first", limit=1)
        await work.commit()
    installed = InstalledPackages(packages=INSTALLED, sequence=len(changes))
    assert await watching.keep(watched, changes, installed, replica="first") is not None
    assert life.id == watched.incarnation


def a_change(sequence: int, package: Package, kind: PackageChangeKind = PackageChangeKind.INSTALLED) -> PackageChange:
    return PackageChange(sequence=sequence, kind=kind, package=package, time=NOON)


async def test_of_a_sandbox_that_does_not_run_what_was_known_last_is_listed_and_said_so(world: World) -> None:
    sandbox = await world.given_running()
    await known(world, sandbox)
    await world.manager.manager.pause(a_request(), sandbox.id, timeout=SOON)

    everything = await world.packages.list(ADA, sandbox.id, EVERYTHING)
    lost = await world.packages.list(ADA, sandbox.id, PackageSelection(unsaved=True))

    assert [one.package.key.name for one in everything.packages] == ["bash", "tree", "rich"]
    assert (everything.record_time, everything.complete) == (world.manager.clock.now(), True)
    assert [one.package.key.name for one in lost.packages] == ["tree"]
    with pytest.raises(SandboxNotFoundError):
        await world.packages.list(BOB, sandbox.id, EVERYTHING)


async def test_what_a_commit_has_is_not_unsaved_any_more_while_the_sandbox_runs_on(world: World) -> None:
    sandbox = await world.given_running()
    await known(world, sandbox)
    unsaved = PackageSelection(unsaved=True)
    before = await world.packages.list(ADA, sandbox.id, unsaved)

    (life,) = world.manager.lives(sandbox.id)
    await world.manager.core.package_keeping.mark_saved(sandbox.id, life.id, captured_at=world.manager.clock.now())

    assert [one.package.key.name for one in before.packages] == ["tree"]
    after = await world.packages.list(ADA, sandbox.id, unsaved)
    assert (after.packages, after.record_time) == ([], None)


async def test_what_nobody_has_noticed_yet_is_unsaved_whatever_was_committed(world: World) -> None:
    sandbox = await world.given_running()
    (life,) = world.manager.lives(sandbox.id)
    await world.manager.core.package_keeping.mark_saved(sandbox.id, life.id, captured_at=world.manager.clock.now())

    page = await world.packages.list(ADA, sandbox.id, PackageSelection(unsaved=True))

    assert [one.package.key.name for one in page.packages] == ["tree"]


async def test_a_history_comes_in_pages_in_either_order_to_whom_it_may(world: World) -> None:
    sandbox = await world.given_running()
    names = [a_package(PackageManager.DPKG, f"p{number}", PackagePlace.ROOT) for number in range(1, 6)]
    await known(world, sandbox, *(a_change(number, package) for number, package in enumerate(names, start=1)))
    where = ChangeSelection()

    async def read(*, newest_first: bool) -> list[list[int]]:
        pages, token = [], ""
        while True:
            page = await world.packages.changes(
                ADA, sandbox.id, where, newest_first=newest_first, page_size=2, page_token=token
            )
            pages.append([one.number for one in page.changes])
            token = page.next_token
            if not token:
                assert (page.last_number, page.missed) == (5, 0)
                return pages

    assert await read(newest_first=False) == [[1, 2], [3, 4], [5]]
    assert await read(newest_first=True) == [[5, 4], [3, 2], [1]]
    with pytest.raises(SandboxNotFoundError):
        await world.packages.changes(BOB, sandbox.id, where)
    rising = (await world.packages.changes(ADA, sandbox.id, where, page_size=1)).next_token
    for token in (rising, "x", "WyJmYWxsaW5nIiwgIjEiXQ==", "WyJmYWxsaW5nIiwgLTFd"):
        with pytest.raises(InvalidRequestError):
            await world.packages.changes(ADA, sandbox.id, where, newest_first=True, page_token=token)


async def test_a_stream_hears_of_changes_from_now_on_whoever_kept_them(world: World) -> None:
    sandbox = await world.given_running()
    await known(world, sandbox, a_change(1, a_package(PackageManager.DPKG, "old", PackagePlace.ROOT)))
    other, _ = world.manager.replica("second")
    telling = PackageTelling(units=world.manager.units, changes=other.changes)
    heard: list[PackageTidings] = []

    async def listen() -> None:
        async for one in telling.follow(sandbox.id):
            heard.append(one)  # noqa: PERF401  it never ends

    tasks = [asyncio.create_task(work) for work in (listen(), telling.run(), other.changes.run())]
    for _ in range(10):
        await asyncio.sleep(0)
    (life,) = world.manager.lives(sandbox.id)
    assert life.endpoint is not None
    watched = Watched(sandbox=sandbox.id, incarnation=life.id, endpoint=life.endpoint, after=1)
    many = [a_change(number, a_package(PackageManager.PIP, f"p{number}", PackagePlace.HOME)) for number in range(2, 80)]
    await world.manager.core.package_keeping.keep(watched, many[:1], None, replica="first")
    await eventually(lambda: len(heard) == 1)
    await world.manager.core.package_keeping.keep(watched, many[1:], None, replica="first")
    await eventually(lambda: len(heard) == 2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert [(one.after_number, [kept.number for kept in one.changes]) for one in heard] == [
        (1, [2]),
        (2, list(range(30, 80))),
    ]


@pytest.mark.parametrize("token", ["x", "e30=", "WyJkcGtnIl0=", "WyJubyIsICJhIiwgImIiXQ=="])
async def test_a_token_of_no_list_is_refused(world: World, token: str) -> None:
    sandbox = await world.given_running()

    with pytest.raises(InvalidRequestError):
        await world.packages.list(ADA, sandbox.id, EVERYTHING, page_token=token)
