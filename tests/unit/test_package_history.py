"""What agents tell of packages is kept once, and what of it is unsaved is never forgotten before a commit has it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.manager.package_keeping import MAX_SET_CHARACTERS, PackageKeeping, bounded
from sandboxd.manager.package_ports import ChangeSelection, Watched
from sandboxd.model.ids import IncarnationId, SandboxId, SessionId
from sandboxd.model.package_history import KeptChange, PackageRecord, Requester
from sandboxd.model.packages import (
    MAX_PACKAGES,
    InstalledPackages,
    Package,
    PackageChange,
    PackageChangeKind,
    PackageKey,
    PackageManager,
    PackagePlace,
)
from sandboxd.model.processes import ProcessId
from sandboxd.model.sandbox import Sandbox
from tests.fakes.manager import NOON
from tests.fakes.packages import FakePackageSource, FakeTurn
from tests.manager_world import ManagerWorld

K = PackageChangeKind
SECOND = timedelta(seconds=1)
FIRST, SECOND_LIFE = IncarnationId("inc-1"), IncarnationId("inc-2")
ROOT, HOME = PackagePlace.ROOT, PackagePlace.HOME


def a_package(name: str, version: str = "1", *, place: PackagePlace = ROOT, initial: bool = False) -> Package:
    manager = PackageManager.DPKG if place is ROOT else PackageManager.PIP
    return Package(
        key=PackageKey(manager=manager, name=name, directory="/db"), version=version, place=place, initial=initial
    )


def a_change(
    sequence: int, package: Package, kind: PackageChangeKind = K.INSTALLED, *, process: str = "", at: datetime = NOON
) -> PackageChange:
    named = ProcessId(process) if process else None
    return PackageChange(sequence=sequence, kind=kind, package=package, time=at, process=named)


def a_record() -> PackageRecord:
    return PackageRecord(sandbox=SandboxId("sbx-1"), incarnation=FIRST)


def installed(
    *packages: Package, sequence: int = 0, root: datetime | None = None, complete: bool = True
) -> InstalledPackages:
    return InstalledPackages(packages=packages, sequence=sequence, complete=complete, root_change_time=root)


def unsaved(record: PackageRecord) -> set[str]:
    return {key.name for key, one in record.known.items() if one.unsaved_time is not None}


IMAGE = (a_package("bash", initial=True), a_package("rich", place=HOME, initial=True))


def test_what_the_image_and_the_home_volume_hold_is_not_unsaved() -> None:
    record, found = a_record().seen(installed(*IMAGE), at=NOON)
    record, kept = record.changed([a_change(1, a_package("flask", place=HOME))], at=NOON)

    assert (record.dirty_since, record.unsaved_packages, found) == (None, 0, [])
    assert [(one.number, one.saved) for one in kept] == [(1, True)]


def test_each_change_is_taken_once_and_numbered_without_gaps() -> None:
    changes = [a_change(1, a_package("a")), a_change(2, a_package("b")), a_change(5, a_package("e"))]

    record, first = a_record().changed(changes, at=NOON)
    record, again = record.changed([*changes, a_change(6, a_package("f"))], at=NOON + SECOND)

    assert [(one.number, one.change.sequence) for one in [*first, *again]] == [(1, 1), (2, 2), (3, 5), (4, 6)]
    assert (record.sequence, record.missed) == (6, 2)


@pytest.mark.parametrize("sequence", [0, -3, 1 << 63])
def test_a_number_that_no_agent_gives_counts_for_nothing(sequence: int) -> None:
    record, kept = a_record().changed([a_change(sequence, a_package("a"))], at=NOON)

    assert (record.sequence, kept, record.dirty_since) == (0, [], None)


def test_dirt_begins_with_the_first_change_and_stays_when_the_package_goes_again() -> None:
    record, _ = a_record().changed([a_change(1, a_package("a"))], at=NOON)
    record, _ = record.changed([a_change(2, a_package("b"))], at=NOON + SECOND)
    assert (record.dirty_since, record.unsaved_packages) == (NOON, 2)

    record, _ = record.changed([a_change(3, a_package("a"), K.REMOVED)], at=NOON + 2 * SECOND)

    assert (record.dirty_since, unsaved(record)) == (NOON, {"b"})


def test_what_is_seen_and_was_never_told_is_unsaved_too() -> None:
    record, _ = a_record().seen(installed(*IMAGE), at=NOON)

    record, _ = record.seen(installed(*IMAGE, a_package("tree"), sequence=4), at=NOON + SECOND)

    assert (record.dirty_since, unsaved(record), record.missed) == (NOON + SECOND, {"tree"}, 4)


def test_a_look_from_before_a_change_takes_nothing_back() -> None:
    record, _ = a_record().changed([a_change(3, a_package("tree"))], at=NOON)

    assert record.seen(installed(sequence=2), at=NOON + SECOND) == (record, [])


def test_a_change_of_the_root_beside_packages_is_dirt_without_packages() -> None:
    record, _ = a_record().seen(installed(*IMAGE, root=NOON), at=NOON + SECOND)

    assert (record.dirty_since, record.unsaved_packages) == (NOON + SECOND, 0)


def test_a_commit_cleans_what_became_known_by_its_capture_and_no_more() -> None:
    record, _ = a_record().changed([a_change(1, a_package("a"))], at=NOON)
    record, _ = record.changed([a_change(2, a_package("b"))], at=NOON + 2 * SECOND)

    record = record.saved(captured_at=NOON + SECOND)
    assert (unsaved(record), record.dirty_since) == ({"b"}, NOON + 2 * SECOND)

    assert record.saved(captured_at=NOON + 2 * SECOND).dirty_since is None


def test_a_package_that_was_changed_again_after_the_capture_stays_unsaved() -> None:
    record, _ = a_record().changed([a_change(1, a_package("a", "1"))], at=NOON)
    record, _ = record.changed([a_change(2, a_package("a", "2"), K.CHANGED)], at=NOON + 2 * SECOND)

    record = record.saved(captured_at=NOON + SECOND, seen=installed(a_package("a", "1"), sequence=1))

    assert (unsaved(record), record.dirty_since) == ({"a"}, NOON + 2 * SECOND)


@pytest.mark.parametrize("news_first", [True, False])
def test_what_the_agent_listed_before_the_capture_is_saved_whenever_its_news_come(news_first: bool) -> None:
    tree, change = a_package("tree"), a_change(1, a_package("tree"))
    seen = installed(tree, sequence=1, root=NOON)
    record, _ = a_record().seen(installed(*IMAGE), at=NOON)

    if news_first:
        record, _ = record.changed([change], at=NOON + 9 * SECOND)
        record, _ = record.seen(seen, at=NOON + 9 * SECOND)
    record = record.saved(captured_at=NOON + SECOND, seen=seen)
    if not news_first:
        record, (kept,) = record.changed([change], at=NOON + 9 * SECOND)
        record, _ = record.seen(seen, at=NOON + 9 * SECOND)
        assert kept.saved

    assert (record.dirty_since, record.unsaved_packages) == (None, 0)


def test_after_a_commit_a_look_at_the_same_packages_is_no_dirt() -> None:
    record, _ = a_record().changed([a_change(1, a_package("tree"))], at=NOON)
    record, _ = record.seen(installed(a_package("tree"), sequence=1, root=NOON), at=NOON)
    record = record.saved(captured_at=NOON + SECOND)

    record, _ = record.seen(installed(a_package("tree"), sequence=1, root=NOON), at=NOON + 2 * SECOND)
    assert record.dirty_since is None

    record, _ = record.seen(installed(a_package("tree"), sequence=1, root=NOON + SECOND), at=NOON + 3 * SECOND)
    assert record.dirty_since == NOON + 3 * SECOND


def test_a_new_life_is_clean_and_its_history_tells_what_the_one_before_has_lost() -> None:
    record, _ = a_record().seen(installed(*IMAGE), at=NOON)
    record, _ = record.changed([a_change(1, a_package("tree")), a_change(2, a_package("flask", place=HOME))], at=NOON)

    image = (a_package("bash", "2", initial=True), *IMAGE[1:], a_package("flask", place=HOME, initial=True))
    record, found = record.living(SECOND_LIFE).seen(installed(*image), at=NOON + SECOND)

    assert (record.dirty_since, record.unsaved_packages, record.sequence, record.number) == (None, 0, 0, 4)
    told = [(one.number, one.change.sequence, one.change.kind, one.change.package.key.name) for one in found]
    assert told == [(3, -1, K.REMOVED, "tree"), (4, -2, K.CHANGED, "bash")]
    assert {one.asked.requester for one in found} == {Requester.IMAGE}


def test_a_life_in_which_something_was_installed_before_the_first_look_tells_it_once() -> None:
    record, _ = a_record().seen(installed(*IMAGE), at=NOON)
    tree = a_package("tree")

    record, kept = record.living(SECOND_LIFE).changed([a_change(1, tree)], at=NOON)
    record, found = record.seen(installed(*IMAGE, tree, sequence=1), at=NOON)

    assert ([one.number for one in kept], found, unsaved(record)) == ([1], [], {"tree"})


def test_nothing_is_said_of_what_lies_between_lives_where_one_was_not_read_whole() -> None:
    record, _ = a_record().seen(installed(*IMAGE, complete=False), at=NOON)

    _, found = record.living(SECOND_LIFE).seen(installed(), at=NOON)

    assert found == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=30), st.integers(0, 40))
def test_no_change_is_clean_that_became_known_after_the_last_capture(
    steps: list[tuple[int, int, bool]], capture: int
) -> None:
    """Whatever is installed, upgraded, removed and committed in whatever order."""
    record, moment, last_change, captured = a_record(), NOON, None, NOON - SECOND
    for sequence, (name, kind, commit) in enumerate(steps, start=1):
        moment += SECOND
        package = a_package(str(name), str(sequence))
        record, _ = record.changed([a_change(sequence, package, list(K)[kind])], at=moment)
        last_change = moment
        if commit:
            captured = max(captured, moment - (capture % 3) * SECOND)
            record = record.saved(captured_at=captured)

    dirty = last_change is not None and last_change > captured
    assert (record.dirty_since is not None) == dirty
    assert record.dirty_since is None or record.dirty_since > captured
    assert record.unsaved_packages == 0 or record.dirty_since is not None


def test_a_set_beyond_all_measure_is_cut_and_called_incomplete() -> None:
    many = installed(*(a_package(f"p{number}") for number in range(MAX_PACKAGES + 1)))
    wide = [a_package(f"{number:0255}", "v" * 256) for number in range(MAX_SET_CHARACTERS // 500)]
    odd = replace(a_package("odd"), key=PackageKey(manager=PackageManager.PIP, name="odd", directory="/a\x1b[2Jb"))

    assert (len(bounded(many).packages), bounded(many).complete) == (MAX_PACKAGES, False)
    assert bounded(installed(*wide)).complete is False
    assert bounded(installed(odd, *IMAGE)).packages == list(IMAGE)


class World:
    """A running sandbox that a replica watches."""

    def __init__(self) -> None:
        self.manager = ManagerWorld()
        self.source = FakePackageSource()
        self.keeping = PackageKeeping(
            units=self.manager.units, source=self.source, changes=self.manager.core.changes, clock=self.manager.clock
        )
        self.replica = "first"

    async def given_watched(self) -> tuple[Sandbox, Watched]:
        sandbox = await self.manager.given_active()
        async with self.manager.units.begin() as work:
            (watched,) = await work.packages.claim(replica=self.replica, limit=1)
            await work.commit()
        return sandbox, watched

    async def keep(
        self, watched: Watched, *changes: PackageChange, looked: InstalledPackages | None = None
    ) -> Sequence[KeptChange] | None:
        kept = await self.keeping.keep(watched, changes, looked, replica=self.replica)
        return None if kept is None else kept.changes

    async def history(self, sandbox: Sandbox) -> Sequence[KeptChange]:
        async with self.manager.units.begin() as work:
            return await work.packages.changes(sandbox.id, ChangeSelection(), limit=99)


async def test_news_are_kept_once_whoever_tells_them_again() -> None:
    world = World()
    sandbox, watched = await world.given_watched()

    for _ in range(2):
        await world.keep(watched, a_change(1, a_package("tree")), a_change(2, a_package("jq")))

    assert [one.change.package.key.name for one in await world.history(sandbox)] == ["tree", "jq"]
    row = world.manager.row(sandbox.id)
    assert (row.dirty_since, row.unsaved_packages) == (world.manager.clock.now(), 2)


async def test_a_replica_that_was_replaced_keeps_nothing_more() -> None:
    world = World()
    sandbox, watched = await world.given_watched()
    world.manager.crash("first")
    async with world.manager.units.begin() as work:
        await work.packages.claim(replica="second", limit=1)
        await work.commit()

    assert await world.keep(watched, a_change(1, a_package("tree"))) is None
    assert await world.history(sandbox) == []


async def test_news_of_a_life_that_is_over_are_not_taken() -> None:
    world = World()
    sandbox, watched = await world.given_watched()
    former = replace(watched, incarnation=IncarnationId("inc-former"))

    assert await world.keep(former, a_change(1, a_package("tree"))) is None
    assert world.manager.row(sandbox.id).dirty_since is None


async def test_a_commit_makes_the_sandbox_clean_and_its_history_saved() -> None:
    world = World()
    sandbox, watched = await world.given_watched()
    await world.keep(watched, a_change(1, a_package("tree")))

    clean = await world.keeping.mark_saved(sandbox.id, watched.incarnation, captured_at=world.manager.clock.now())

    assert clean
    assert world.manager.row(sandbox.id).dirty_since is None
    assert [one.saved for one in await world.history(sandbox)] == [True]


async def test_what_became_known_after_the_capture_keeps_the_sandbox_dirty() -> None:
    world = World()
    sandbox, watched = await world.given_watched()
    captured_at = world.manager.clock.now()
    world.manager.clock.advance(1)
    await world.keep(watched, a_change(1, a_package("tree")))

    assert not await world.keeping.mark_saved(sandbox.id, watched.incarnation, captured_at=captured_at)
    assert world.manager.row(sandbox.id).unsaved_packages == 1


async def test_a_commit_of_another_life_changes_nothing() -> None:
    world = World()
    sandbox, watched = await world.given_watched()
    await world.keep(watched, a_change(1, a_package("tree")))

    await world.keeping.mark_saved(
        sandbox.id, IncarnationId("inc-former"), captured_at=world.manager.clock.now() + SECOND
    )

    assert world.manager.row(sandbox.id).unsaved_packages == 1


async def test_a_commit_before_the_first_news_is_remembered() -> None:
    world = World()
    sandbox = await world.manager.given_active()
    (life,) = world.manager.lives(sandbox.id)
    seen = installed(a_package("tree"), sequence=1)
    await world.keeping.mark_saved(sandbox.id, life.id, captured_at=world.manager.clock.now(), seen=seen)

    async with world.manager.units.begin() as work:
        (watched,) = await work.packages.claim(replica="first", limit=1)
        await work.commit()
    world.manager.clock.advance(1)
    await world.keep(watched, a_change(1, a_package("tree")), looked=seen)

    assert world.manager.row(sandbox.id).dirty_since is None


@pytest.mark.parametrize(
    ("process", "others", "requester", "session"),
    [
        ("prc-cli", [], Requester.SESSION, "ses-1"),
        ("prc-cli", ["ses-2"], Requester.SESSION, None),
        ("prc-terminal", [], Requester.TERMINAL, None),
        ("prc-other", [], Requester.UNKNOWN, None),
        ("", [], Requester.UNKNOWN, None),
    ],
)
async def test_who_asked_for_it_is_told_where_only_one_can_have(
    process: str, others: list[str], requester: Requester, session: str | None
) -> None:
    world = World()
    sandbox, watched = await world.given_watched()
    world.source.terminals.add(ProcessId("prc-terminal"))
    world.manager.units.rows.package_turns.extend(
        FakeTurn(
            sandbox=sandbox.id,
            incarnation=watched.incarnation,
            process=ProcessId("prc-cli"),
            session=SessionId(name),
            start_time=NOON - SECOND,
        )
        for name in ["ses-1", *others]
    )

    await world.keep(watched, a_change(1, a_package("tree"), process=process))

    (kept,) = await world.history(sandbox)
    assert (kept.asked.requester, kept.asked.session) == (requester, session)


async def test_a_commit_right_after_an_install_waits_for_its_news_and_leaves_nothing_unsaved() -> None:
    world = World()
    sandbox, watched = await world.given_watched()
    (life,) = world.manager.lives(sandbox.id)
    world.source.installed[watched.endpoint] = installed(a_package("tree"), sequence=1, root=NOON)

    waiting = asyncio.create_task(world.keeping.catch_up(life))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    told = installed(a_package("tree"), sequence=1, root=NOON)
    await world.keep(watched, a_change(1, a_package("tree")), looked=told)

    assert await waiting
    await world.keeping.mark_saved(sandbox.id, life.id, captured_at=world.manager.clock.now())
    assert world.manager.row(sandbox.id).dirty_since is None


async def test_nobody_waits_for_news_that_nobody_brings() -> None:
    world = World()
    sandbox, watched = await world.given_watched()
    (life,) = world.manager.lives(sandbox.id)

    assert not await world.keeping.catch_up(replace(life, endpoint=None))
    assert not await world.keeping.catch_up(life)  # the agent does not answer
    world.source.installed[watched.endpoint] = installed(a_package("tree"), sequence=1)
    late = asyncio.create_task(world.keeping.catch_up(life))
    await asyncio.sleep(0.05)
    world.manager.clock.advance(10)
    assert not await late
    async with world.manager.units.begin() as work:
        await work.packages.release([sandbox.id], replica="first")
        await work.commit()
    assert not await world.keeping.catch_up(life)
