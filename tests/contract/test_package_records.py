"""What records and histories of packages promise, held by the fake and by PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.manager.package_ports import ChangeSelection, Watched
from sandboxd.model.errors import SandboxNotFoundError
from sandboxd.model.ids import IncarnationId, SandboxId, SessionId
from sandboxd.model.package_history import MAX_CHANGES, Asked, KeptChange, KnownPackage, PackageRecord, Requester
from sandboxd.model.packages import (
    Package,
    PackageChange,
    PackageChangeKind,
    PackageKey,
    PackageManager,
    PackagePlace,
)
from sandboxd.model.processes import ProcessId
from sandboxd.model.sandbox import AgentEndpoint, Incarnation, Sandbox, SandboxState
from tests.contract.test_unit_of_work import NOON, a_life, a_sandbox, given
from tests.contract.units_world import UnitsWorld

MINUTE = timedelta(minutes=1)
ENDPOINT = AgentEndpoint(host="127.0.0.1", port=4711, server_name="inc.test")


def a_package(name: str = "tree", *, manager: PackageManager = PackageManager.DPKG) -> Package:
    place = PackagePlace.ROOT if manager is PackageManager.DPKG else PackagePlace.HOME
    key = PackageKey(manager=manager, name=name, directory="/var/lib/dpkg é")
    return Package(key=key, version="2.1~ü", place=place, requested=False)


def a_change(
    number: int,
    life: IncarnationId,
    *,
    package: Package | None = None,
    kind: PackageChangeKind = PackageChangeKind.CHANGED,
    asked: Asked | None = None,
    saved: bool = False,
) -> KeptChange:
    return KeptChange(
        number=number,
        incarnation=life,
        change=PackageChange(
            sequence=number,
            kind=kind,
            package=package or a_package(),
            old_version="1",
            time=NOON - MINUTE,
            process=ProcessId("prc-1"),
        ),
        kept_time=NOON + number * MINUTE,
        asked=asked or Asked(requester=Requester.SESSION, session=SessionId("ses-1")),
        saved=saved,
    )


async def running(world: UnitsWorld, *, state: SandboxState = SandboxState.ACTIVE) -> tuple[Sandbox, Incarnation]:
    sandbox = a_sandbox(state=state)
    life = replace(a_life(sandbox), endpoint=ENDPOINT, ready_time=NOON)
    await given(world, sandbox)
    async with world.units.begin() as work:
        await work.incarnations.add(life)
        await work.commit()
    return sandbox, life


async def save(world: UnitsWorld, record: PackageRecord, *changes: KeptChange) -> None:
    async with world.units.begin() as work:
        await work.packages.hold(record.sandbox, record.incarnation)
        await work.packages.save(record, changes)
        await work.commit()


async def numbers(world: UnitsWorld, sandbox: Sandbox, where: ChangeSelection | None = None) -> list[int]:
    async with world.units.begin() as work:
        return [one.number for one in await work.packages.changes(sandbox.id, where or ChangeSelection(), limit=99)]


async def claim(world: UnitsWorld, replica: str, *among: Sandbox, limit: int = 99) -> list[Watched]:
    async with world.units.begin() as work:
        names = [one.id for one in among] if among else None
        claimed = await work.packages.claim(replica=replica, limit=limit, among=names)
        await work.commit()
    return list(claimed)


async def test_a_record_is_kept_as_it_was_saved_and_its_sandbox_shows_what_is_unsaved(world: UnitsWorld) -> None:
    sandbox, life = await running(world)
    tree, gem = a_package(), replace(a_package("rails", manager=PackageManager.GEM), initial=True, requested=True)
    record = PackageRecord(
        sandbox=sandbox.id,
        incarnation=life.id,
        sequence=7,
        number=3,
        known={
            tree.key: KnownPackage(package=tree, unsaved_time=NOON + timedelta(microseconds=1)),
            gem.key: KnownPackage(package=gem),
        },
        looked=True,
        complete=True,
        root_change_time=NOON,
        look_time=NOON + MINUTE,
        dirty_since=NOON - MINUTE,
        other_unsaved_time=NOON,
        saved_time=NOON - 2 * MINUTE,
        saved_sequence=2,
        saved_root_time=NOON - 3 * MINUTE,
        missed=4,
    )

    await save(world, record)

    async with world.units.begin() as work:
        assert await work.packages.get(sandbox.id) == record
        shown = await work.sandboxes.get(sandbox.id)
        assert await work.packages.get(SandboxId("sbx-none")) is None
    assert (shown.dirty_since, shown.unsaved_packages, shown.version) == (NOON - MINUTE, 1, sandbox.version)


async def test_a_set_of_a_whole_distribution_comes_back_as_it_was(world: UnitsWorld) -> None:
    sandbox, life = await running(world)
    packages = [a_package(f"p{number}") for number in range(5000)]
    known = {one.key: KnownPackage(package=one, unsaved_time=NOON) for one in packages}
    record = PackageRecord(sandbox=sandbox.id, incarnation=life.id, known=known)

    await save(world, record)

    async with world.units.begin() as work:
        assert await work.packages.get(sandbox.id) == record


async def test_whoever_writes_the_sandbox_leaves_what_is_unsaved_alone(world: UnitsWorld) -> None:
    sandbox, life = await running(world)
    package = a_package()
    known = {package.key: KnownPackage(package=package, unsaved_time=NOON)}
    await save(world, PackageRecord(sandbox=sandbox.id, incarnation=life.id, dirty_since=NOON, known=known))

    async with world.units.begin() as work:
        await work.sandboxes.save(replace(sandbox, display_name="other", version=2))
        await work.commit()

    async with world.units.begin() as work:
        found = await work.sandboxes.get(sandbox.id)
    assert (found.display_name, found.dirty_since, found.unsaved_packages) == ("other", NOON, 1)


async def test_a_record_of_no_sandbox_cannot_be_held(world: UnitsWorld) -> None:
    async with world.units.begin() as work:
        with pytest.raises(SandboxNotFoundError):
            await work.packages.hold(SandboxId("sbx-none"), IncarnationId("inc-1"))


async def test_history_comes_as_it_was_kept_in_either_order_from_any_place(world: UnitsWorld) -> None:
    sandbox, life = await running(world)
    kept = [a_change(number, life.id) for number in range(1, 6)]
    await save(world, PackageRecord(sandbox=sandbox.id, incarnation=life.id, number=5), *kept)

    async with world.units.begin() as work:
        everything = await work.packages.changes(sandbox.id, ChangeSelection(), limit=99)
        rising = await work.packages.changes(sandbox.id, ChangeSelection(), limit=2, from_number=3)
        falling = await work.packages.changes(sandbox.id, ChangeSelection(), limit=2, falling=True, from_number=5)
        last = await work.packages.numbers([sandbox.id, SandboxId("sbx-none")])

    assert everything == kept
    assert ([one.number for one in rising], [one.number for one in falling]) == ([4, 5], [4, 3])
    assert last == {sandbox.id: 5}


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        (ChangeSelection(manager=PackageManager.PIP), [2]),
        (ChangeSelection(kind=PackageChangeKind.REMOVED), [3]),
        (ChangeSelection(place=PackagePlace.ROOT), [1, 3, 4]),
        (ChangeSelection(requester=Requester.IMAGE), [4]),
        (ChangeSelection(unsaved=True), [1, 3]),
        (ChangeSelection(after_number=3), [4]),
        (ChangeSelection(since=NOON + 2 * MINUTE), [2, 3, 4]),
        (ChangeSelection(place=PackagePlace.ROOT, unsaved=True, after_number=1), [3]),
    ],
)
async def test_a_selection_of_history_leaves_out_the_rest(
    world: UnitsWorld, where: ChangeSelection, wanted: list[int]
) -> None:
    sandbox, life = await running(world)
    kept = [
        a_change(1, life.id),
        a_change(2, life.id, package=a_package("rich", manager=PackageManager.PIP), saved=True),
        a_change(3, life.id, kind=PackageChangeKind.REMOVED),
        a_change(4, life.id, asked=Asked(requester=Requester.IMAGE), saved=True),
    ]
    await save(world, PackageRecord(sandbox=sandbox.id, incarnation=life.id, number=4), *kept)

    assert await numbers(world, sandbox, where) == wanted


async def test_the_history_of_a_sandbox_is_bounded(world: UnitsWorld) -> None:
    sandbox, life = await running(world)
    await save(
        world,
        PackageRecord(sandbox=sandbox.id, incarnation=life.id, number=2),
        *(a_change(number, life.id) for number in (1, 2)),
    )

    last = MAX_CHANGES + 1
    await save(world, PackageRecord(sandbox=sandbox.id, incarnation=life.id, number=last), a_change(last, life.id))

    assert await numbers(world, sandbox) == [2, last]


async def test_a_commit_marks_what_it_has_by_number_or_by_moment_in_its_life_alone(world: UnitsWorld) -> None:
    sandbox, life = await running(world)
    kept = [*(a_change(number, life.id) for number in range(1, 5)), a_change(5, IncarnationId("inc-former"))]
    await save(world, PackageRecord(sandbox=sandbox.id, incarnation=life.id, number=5), *kept)

    async with world.units.begin() as work:
        await work.packages.mark_saved(sandbox.id, life.id, up_to=3, kept_by=NOON + MINUTE)
        await work.commit()

    assert await numbers(world, sandbox, ChangeSelection(unsaved=True)) == [4, 5]


async def test_one_replica_watches_a_running_sandbox_until_it_dies_or_lets_go(world: UnitsWorld) -> None:
    await world.given_replica("one")
    await world.given_replica("two")
    sandbox, life = await running(world)
    watched = Watched(sandbox=sandbox.id, incarnation=life.id, endpoint=ENDPOINT, after=0)

    assert await claim(world, "one") == [watched]
    assert await claim(world, "two") == []
    assert await claim(world, "one") == []  # it has it already

    await world.kill_replica("one")
    assert await claim(world, "two") == [watched]
    async with world.units.begin() as work:
        assert list(await work.packages.owned(replica="two")) == [watched]
        assert list(await work.packages.owned(replica="one")) == []
        await work.packages.release([sandbox.id], replica="one")  # not its own any more: nothing happens
        assert list(await work.packages.owned(replica="two")) == [watched]
        await work.packages.release([sandbox.id], replica="two")
        assert list(await work.packages.owned(replica="two")) == []
        await work.commit()


async def test_only_what_is_active_is_watched_and_no_more_than_asked_for(world: UnitsWorld) -> None:
    await world.given_replica("one")
    lives = [await running(world) for _ in range(3)]
    await running(world, state=SandboxState.HIBERNATED)
    async with world.units.begin() as work:
        await work.incarnations.save(replace(lives[0][1], end_time=NOON, end_reason="AGENT_LOST"))
        await work.commit()

    among = await claim(world, "one", lives[0][0], lives[2][0])
    rest = await claim(world, "one", limit=1)

    assert [one.sandbox for one in among] == [lives[2][0].id]
    assert [one.sandbox for one in rest] == [lives[1][0].id]
    assert await claim(world, "one") == []


async def test_a_watch_goes_on_after_the_last_number_of_the_same_life(world: UnitsWorld) -> None:
    await world.given_replica("one")
    sandbox, life = await running(world)
    await claim(world, "one")
    await save(world, PackageRecord(sandbox=sandbox.id, incarnation=life.id, sequence=9))
    async with world.units.begin() as work:
        (same,) = await work.packages.owned(replica="one", among=[sandbox.id])

    async with world.units.begin() as work:
        await work.incarnations.save(replace(life, end_time=NOON))
        await work.incarnations.add(replace(a_life(sandbox, number=2), endpoint=ENDPOINT))
        await work.commit()
    async with world.units.begin() as work:
        (following,) = await work.packages.owned(replica="one")

    assert (same.after, same.incarnation == life.id) == (9, True)
    assert (following.after, following.incarnation == life.id) == (0, False)
