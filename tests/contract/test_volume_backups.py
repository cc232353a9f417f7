"""What backing up volumes promises: for the fake, directories with restic, pods in memory, and snapshots of a storage.

A world of its own says how files get into volumes: `VolumesWorld`. Files alone are looked at here; that owners, links
and the like come back is the repository's suite.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from sandboxd.backends.kubernetes.volume_backups import KubernetesVolumeBackups
from sandboxd.backends.local.backups import LocalVolumeBackups
from sandboxd.backends.local.layout import Layout, SandboxFiles
from sandboxd.backends.restic.child import ResticSettings
from sandboxd.backends.restic.clients import ResticRepositories
from sandboxd.model.backup import BackupMethod, BackupSetId, RestoreId, TreeComparison, Volume
from sandboxd.model.backup_errors import (
    BackupDamagedError,
    BackupPasswordLostError,
    BackupPathsUnsupportedError,
    BackupSnapshotNotFoundError,
    BackupUnreadError,
)
from sandboxd.model.errors import InvalidRequestError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.sandbox import TIER_RESOURCES, Tier
from sandboxd.volumes.listing import StrayListing
from sandboxd.volumes.ports import STAGING, RestoreOrder, TakenVolumes, VolumeBackups, VolumesOf, VolumesProgress
from sandboxd.volumes.volume_errors import VolumesNotFoundError
from tests.backup_operator import a_backing_cluster, a_snapshotting_cluster, its_backups
from tests.backup_trees import PATIENCE
from tests.fakes.backup_pods import BackupCluster
from tests.fakes.volume_backups import FakeVolumeBackups

ACME, OTHER = ClientId("acme"), ClientId("other")
HOME = {b".bashrc": b"alias ll='ls -l'\n", b".gemini/session.json": b"{}"}
WORK = {b"src/main.py": b"print('hello')\n", b"src/data.bin": bytes(range(256)) * 64, b"READ ME \xff": b"odd name"}
_numbers = count(1)


class VolumesWorld(Protocol):
    """Volume backups, and the volumes themselves."""

    @property
    def backups(self) -> VolumeBackups: ...

    @property
    def whole_volumes_only(self) -> bool:
        """What snapshots lose: nobody looks into one, so its files are not counted, and no path comes back."""
        ...

    async def given(self, of: VolumesOf, files: Mapping[Volume, Mapping[bytes, bytes]]) -> None:
        """The sandbox has these volumes, and nothing else in them; it does not run."""

    async def keep(self, of: VolumesOf) -> None:
        """The sandbox is removed, and its volumes are kept."""

    async def destroy(self, of: VolumesOf) -> None:
        """Its volumes are no more."""

    async def files(self, of: VolumesOf, volume: Volume) -> Mapping[bytes, bytes]:
        """All files of a volume."""
        ...


@dataclass
class FakeVolumesWorld:
    backups: FakeVolumeBackups
    whole_volumes_only: bool = False

    async def given(self, of: VolumesOf, files: Mapping[Volume, Mapping[bytes, bytes]]) -> None:
        self.backups.given(of.sandbox, home=dict(files[Volume.HOME]), workspace=dict(files[Volume.WORKSPACE]))

    async def keep(self, of: VolumesOf) -> None:
        pass

    async def destroy(self, of: VolumesOf) -> None:
        del self.backups.volumes[of.sandbox]

    async def files(self, of: VolumesOf, volume: Volume) -> Mapping[bytes, bytes]:
        return self.backups.volumes[of.sandbox][volume]


@dataclass
class LocalVolumesWorld:
    backups: LocalVolumeBackups
    layout: Layout
    whole_volumes_only: bool = False

    async def given(self, of: VolumesOf, files: Mapping[Volume, Mapping[bytes, bytes]]) -> None:
        self.layout.erase(of.sandbox)
        place = self.layout.sandbox(of.sandbox)
        place.make()
        for volume, contents in files.items():
            for path, content in contents.items():
                target = Path(os.fsdecode(os.fsencode(self.root(place, volume)) + b"/" + path))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)

    async def keep(self, of: VolumesOf) -> None:
        self.layout.keep(of.sandbox)

    async def destroy(self, of: VolumesOf) -> None:
        self.layout.erase(of.sandbox)

    async def files(self, of: VolumesOf, volume: Volume) -> Mapping[bytes, bytes]:
        root = self.root(self.layout.sandbox(of.sandbox), volume)
        return {os.fsencode(one.relative_to(root)): one.read_bytes() for one in root.rglob("*") if one.is_file()}

    @staticmethod
    def root(place: SandboxFiles, volume: Volume) -> Path:
        return place.home if volume is Volume.HOME else place.workspace


@dataclass
class ClusterVolumesWorld:
    """A cluster in memory, with the real operator and worker; repositories copy trees, or a storage makes snapshots."""

    backups: KubernetesVolumeBackups
    cluster: BackupCluster
    whole_volumes_only: bool = False

    async def given(self, of: VolumesOf, files: Mapping[Volume, Mapping[bytes, bytes]]) -> None:
        places = await self.cluster.give(of.client, of.sandbox)
        for volume, contents in files.items():
            for path, content in contents.items():
                target = Path(os.fsdecode(os.fsencode(places[volume]) + b"/" + path))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)

    async def keep(self, of: VolumesOf) -> None:
        pass

    async def destroy(self, of: VolumesOf) -> None:
        await self.cluster.take_away(of.client, of.sandbox)

    async def files(self, of: VolumesOf, volume: Volume) -> Mapping[bytes, bytes]:
        root = self.cluster.places(of.sandbox)[volume]
        return {os.fsencode(one.relative_to(root)): one.read_bytes() for one in root.rglob("*") if one.is_file()}


@pytest.fixture
async def memory_cluster(tmp_path: Path) -> AsyncIterator[ClusterVolumesWorld]:
    async with a_backing_cluster(tmp_path) as cluster:
        yield ClusterVolumesWorld(its_backups(cluster), cluster)


@pytest.fixture
async def snapshots(tmp_path: Path) -> AsyncIterator[ClusterVolumesWorld]:
    async with a_snapshotting_cluster(tmp_path) as cluster:
        backups = its_backups(cluster, method=BackupMethod.SNAPSHOTS)
        yield ClusterVolumesWorld(backups, cluster, whole_volumes_only=True)


@pytest.fixture(params=["fake", "local", "memory_cluster", "snapshots"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> VolumesWorld:
    if request.param == "fake":
        return FakeVolumesWorld(FakeVolumeBackups())
    if request.param in ("memory_cluster", "snapshots"):
        made: VolumesWorld = request.getfixturevalue(request.param)
        return made
    program: Path = request.getfixturevalue("restic")
    settings = ResticSettings(
        location=str(tmp_path / "backups"),
        password_file=tmp_path / "none",
        work=tmp_path / "work",
        program=str(program),
    )
    repositories = ResticRepositories(settings=settings, passwords=tmp_path / "passwords")
    return LocalVolumesWorld(
        LocalVolumeBackups(data=tmp_path / "data", repositories=repositories), Layout(data=tmp_path / "data")
    )


def a_sandbox(client: ClientId = ACME) -> VolumesOf:
    return VolumesOf(
        sandbox=SandboxId(f"sbx-{next(_numbers)}"),
        client=client,
        freelancer=FreelancerId("ada"),
        tier=Tier.BASIC,
        resources=TIER_RESOURCES[Tier.BASIC],
    )


def a_name() -> BackupSetId:
    return BackupSetId(f"bak-{next(_numbers)}")


async def taken(world: VolumesWorld, backup: BackupSetId, of: VolumesOf) -> TakenVolumes:
    return await world.backups.take(backup, of, timeout=PATIENCE, progress=lambda _: None)


def an_order(taken: TakenVolumes, into: VolumesOf, **paths: list[bytes]) -> RestoreOrder:
    wanted = {one.volume: one.snapshot for one in taken.volumes if not paths or one.volume.value in paths}
    return RestoreOrder(
        id=RestoreId(f"rst-{next(_numbers)}"),
        into=into,
        snapshots=wanted,
        paths={Volume(name): those for name, those in paths.items()},
    )


async def restored(world: VolumesWorld, order: RestoreOrder) -> None:
    await world.backups.restore(order, timeout=PATIENCE, progress=lambda _: None)


async def test_volumes_that_are_gone_come_back_whole(world: VolumesWorld) -> None:
    of, told = a_sandbox(), list[VolumesProgress]()
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})

    made = await world.backups.take(a_name(), of, timeout=PATIENCE, progress=told.append)
    await world.destroy(of)
    back = await world.backups.restore(an_order(made, of), timeout=PATIENCE, progress=told.append)

    assert await world.files(of, Volume.HOME) == HOME
    assert await world.files(of, Volume.WORKSPACE) == WORK
    if world.whole_volumes_only:
        assert {(one.files, one.bytes > 0, bool(one.handle)) for one in made.volumes} == {(0, True, True)}
    else:
        assert {one.volume: (one.files, one.bytes) for one in made.volumes} == {
            Volume.HOME: (len(HOME), sum(map(len, HOME.values()))),
            Volume.WORKSPACE: (len(WORK), sum(map(len, WORK.values()))),
        }
    assert back.entries >= len(HOME) + len(WORK)
    assert {one.volume for one in told} == set(Volume)


async def test_a_set_is_asked_for_again_and_is_the_same(world: VolumesWorld) -> None:
    of, backup = a_sandbox(), a_name()
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    first = await taken(world, backup, of)
    await world.given(of, {Volume.HOME: {b"later": b"1"}, Volume.WORKSPACE: WORK})

    again = await taken(world, backup, of)
    another = await taken(world, a_name(), of)

    assert [(one.volume, one.snapshot, one.tree) for one in again.volumes] == [
        (one.volume, one.snapshot, one.tree) for one in first.volumes
    ]
    assert {one.snapshot for one in another.volumes}.isdisjoint({one.snapshot for one in first.volumes})
    assert {one.volume: one.added_bytes for one in another.volumes}[Volume.WORKSPACE] < len(WORK[b"src/data.bin"])


async def test_another_reading_of_a_set_is_of_what_there_is_then_and_goes_with_the_set(world: VolumesWorld) -> None:
    of, backup = a_sandbox(), a_name()
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    first = await taken(world, backup, of)
    await world.backups.end(backup, timeout=PATIENCE)
    await world.given(of, {Volume.HOME: {b"later": b"1"}, Volume.WORKSPACE: WORK})

    second = await world.backups.take(backup, of, timeout=PATIENCE, progress=lambda _: None, reading=2)
    again = await world.backups.take(backup, of, timeout=PATIENCE, progress=lambda _: None, reading=2)

    assert [one.snapshot for one in again.volumes] == [one.snapshot for one in second.volumes]
    assert {one.snapshot for one in second.volumes}.isdisjoint({one.snapshot for one in first.volumes})
    if not world.whole_volumes_only:
        assert {one.volume: one.files for one in second.volumes} == {Volume.HOME: 1, Volume.WORKSPACE: len(WORK)}
    gone = await world.backups.forget(of.client, [backup], prune=False, timeout=PATIENCE)
    both = {one.snapshot for taken in (first, second) for one in taken.volumes}
    # Snapshots that were overtaken are removed by themselves, sooner or later.
    assert both >= {*gone.snapshots} >= ({one.snapshot for one in second.volumes} if world.whole_volumes_only else both)


async def test_kept_volumes_of_a_removed_sandbox_are_taken_and_brought_back_into_their_place(
    world: VolumesWorld,
) -> None:
    of = a_sandbox()
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    await world.keep(of)

    made = await taken(world, a_name(), of)
    await restored(world, an_order(made, of))

    assert await world.files(of, Volume.HOME) == HOME
    assert await world.files(of, Volume.WORKSPACE) == WORK


async def test_a_whole_volume_takes_the_place_of_what_is_there(world: VolumesWorld) -> None:
    of = a_sandbox()
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    made = await taken(world, a_name(), of)
    await world.given(of, {Volume.HOME: {b"x": b"1"}, Volume.WORKSPACE: {b"src": b"a file now", b"new/y": b"2"}})
    order = an_order(made, of)

    await restored(world, order)
    await restored(world, order)  # whoever asked died meanwhile, and another one asks

    assert await world.files(of, Volume.HOME) == HOME
    assert await world.files(of, Volume.WORKSPACE) == WORK


async def test_what_a_broken_restore_left_is_not_taken_and_goes_with_the_next_one(world: VolumesWorld) -> None:
    of, left = a_sandbox(), f"{STAGING}rst-1/half".encode()
    await world.given(of, {Volume.HOME: HOME | {left: b"half"}, Volume.WORKSPACE: WORK | {left: b"half"}})
    made = await taken(world, a_name(), of)

    if world.whole_volumes_only:  # a snapshot leaves nothing out
        await restored(world, an_order(made, of))
        assert await world.files(of, Volume.HOME) == HOME | {left: b"half"}
        return
    await restored(world, an_order(made, of, home=[b".bashrc"]))

    assert await world.files(of, Volume.HOME) == HOME
    assert await world.files(of, Volume.WORKSPACE) == WORK
    await world.destroy(of)
    await restored(world, an_order(made, of))
    assert await world.files(of, Volume.HOME) == HOME


async def test_what_is_staged_changes_nothing_until_it_is_restored(
    world: VolumesWorld,
) -> None:
    of, later = a_sandbox(), {Volume.HOME: {b"new": b"1"}, Volume.WORKSPACE: {b"src/main.py": b"later"}}
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    made = await taken(world, a_name(), of)
    await world.given(of, later)
    order = an_order(made, of)

    for _ in range(2):
        await world.backups.stage(order, timeout=PATIENCE, progress=lambda _: None)
        assert {volume: unstaged(await world.files(of, volume)) for volume in Volume} == later
    await world.backups.restore(order, timeout=PATIENCE, progress=lambda _: None)

    assert await world.files(of, Volume.HOME) == HOME
    assert await world.files(of, Volume.WORKSPACE) == WORK


async def test_what_is_discarded_leaves_nothing_and_is_fetched_anew(world: VolumesWorld) -> None:
    of, later = a_sandbox(), {Volume.HOME: {b"new": b"1"}, Volume.WORKSPACE: {b"src/main.py": b"later"}}
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    made = await taken(world, a_name(), of)
    await world.given(of, later)
    order = an_order(made, of)
    await world.backups.stage(order, timeout=PATIENCE, progress=lambda _: None)

    for _ in range(2):
        await world.backups.end(order.id, timeout=PATIENCE)
        await world.backups.discard(order, timeout=PATIENCE)
        assert {volume: await world.files(of, volume) for volume in Volume} == later

    await world.backups.restore(order, timeout=PATIENCE, progress=lambda _: None)
    assert await world.files(of, Volume.WORKSPACE) == WORK
    await world.destroy(of)
    await world.backups.discard(order, timeout=PATIENCE)


def unstaged(files: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    return {path: content for path, content in files.items() if not path.startswith(STAGING.encode())}


async def test_paths_come_back_beside_what_is_there(world: VolumesWorld) -> None:
    of = a_sandbox()
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    made = await taken(world, a_name(), of)
    now = {b"src/main.py": b"broken", b"src/new.py": b"stays", b"READ ME \xff": b"stays too"}
    await world.given(of, {Volume.HOME: {b".bashrc": b"stays"}, Volume.WORKSPACE: now})

    order = an_order(made, of, workspace=[b"src/main.py", b"src/data.bin"])
    if world.whole_volumes_only:
        with pytest.raises(BackupPathsUnsupportedError):
            await restored(world, order)
        assert await world.files(of, Volume.WORKSPACE) == now
        return
    await restored(world, order)

    assert await world.files(of, Volume.HOME) == {b".bashrc": b"stays"}
    assert await world.files(of, Volume.WORKSPACE) == {
        **now,
        b"src/main.py": WORK[b"src/main.py"],
        b"src/data.bin": WORK[b"src/data.bin"],
    }


async def test_a_set_comes_back_in_another_sandbox(world: VolumesWorld) -> None:
    of, new = a_sandbox(), a_sandbox()
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    made = await taken(world, a_name(), of)

    await restored(world, an_order(made, new))

    assert await world.files(new, Volume.WORKSPACE) == await world.files(of, Volume.WORKSPACE) == WORK


async def test_volumes_are_compared_with_what_was_taken(world: VolumesWorld) -> None:
    of, new, absent = a_sandbox(), a_sandbox(), a_sandbox()
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    made = await taken(world, a_name(), of)
    await restored(world, an_order(made, new))
    snapshots = {one.volume: one.snapshot for one in made.volumes}

    async def compared(which: VolumesOf) -> Mapping[Volume, TreeComparison]:
        name = RestoreId(f"cmp-{next(_numbers)}")
        return await world.backups.compare(name, which, snapshots, timeout=PATIENCE, progress=lambda _: None)

    if world.whole_volumes_only:
        with pytest.raises(BackupUnreadError):
            await compared(new)
        return
    same = await compared(new)
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: {**WORK, b"src/main.py": b"print('jello')\n"}})
    other = await compared(of)

    assert set(same) == set(Volume)
    assert [(one.expected == one.found, one.difference_count) for one in same.values()] == [(True, 0)] * 2
    assert sum(one.bytes for one in same.values()) == sum(map(len, [*HOME.values(), *WORK.values()]))
    assert other[Volume.WORKSPACE].expected != other[Volume.WORKSPACE].found
    assert any(one.startswith("src/main.py") for one in other[Volume.WORKSPACE].differences)
    with pytest.raises(VolumesNotFoundError):
        await compared(absent)


async def test_a_path_that_the_set_has_not_changes_nothing(world: VolumesWorld) -> None:
    of = a_sandbox()
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    made = await taken(world, a_name(), of)

    whole = world.whole_volumes_only
    with pytest.raises(BackupPathsUnsupportedError if whole else BackupSnapshotNotFoundError):
        await restored(world, an_order(made, of, workspace=[b"src/none.py"]))
    with pytest.raises(BackupPathsUnsupportedError if whole else InvalidRequestError):
        await restored(world, an_order(made, of, workspace=[b"../home/.bashrc"]))
    changed = {**HOME, b".bashrc": b"changed"}
    await world.given(of, {Volume.HOME: changed, Volume.WORKSPACE: WORK})
    with pytest.raises(BackupPathsUnsupportedError if whole else BackupSnapshotNotFoundError):
        await restored(world, an_order(made, of, home=[b".bashrc"], workspace=[b"src/none.py"]))

    assert await world.files(of, Volume.WORKSPACE) == WORK
    assert await world.files(of, Volume.HOME) == changed, "nor what would have come back"


async def test_forgotten_sets_are_gone_and_others_are_not(world: VolumesWorld) -> None:
    of, gone, stays = a_sandbox(), a_name(), a_name()
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    of_gone, of_stays = await taken(world, gone, of), await taken(world, stays, of)

    proof = await world.backups.forget(ACME, [gone, a_name()], prune=True, timeout=PATIENCE)
    again = await world.backups.forget(ACME, [gone], prune=False, timeout=PATIENCE)

    assert set(proof.snapshots) == {one.snapshot for one in of_gone.volumes}
    assert (proof.left, again.left, list(again.snapshots)) == (2, 2, [])
    with pytest.raises(BackupSnapshotNotFoundError):
        await restored(world, an_order(of_gone, of))
    await restored(world, an_order(of_stays, of))
    await world.backups.verify(ACME, content=True, timeout=PATIENCE)


async def test_what_a_client_has_of_sets_that_nobody_names_is_told_with_its_bytes(world: VolumesWorld) -> None:
    of, known, stray = a_sandbox(), a_name(), a_name()
    others = a_sandbox(OTHER)
    for one in (of, others):
        await world.given(one, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    await taken(world, known, of)
    await taken(world, stray, of)
    await taken(world, a_name(), others)
    listing = world.backups
    assert isinstance(listing, StrayListing)

    found = await listing.strays(ACME, [known], timeout=PATIENCE)
    nothing = await listing.strays(ACME, [known, stray], timeout=PATIENCE)
    await world.backups.forget(ACME, [stray], prune=True, timeout=PATIENCE)
    after = await listing.strays(ACME, [known], timeout=PATIENCE)
    nobodys = await listing.strays(ClientId("nobody"), [], timeout=PATIENCE)

    assert (set(found.sizes), found.more) == ({stray}, 0)
    assert found.sizes[stray] >= 0
    assert [one.sizes for one in (nothing, after, nobodys)] == [{}, {}, {}]


async def test_a_set_is_proven_by_reading_it_and_another_tree_or_none_is_not(world: VolumesWorld) -> None:
    of, gone = a_sandbox(), a_name()
    await world.given(of, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    made, forgotten = await taken(world, a_name(), of), await taken(world, gone, of)
    await world.backups.forget(ACME, [gone], prune=True, timeout=PATIENCE)

    if world.whole_volumes_only:
        with pytest.raises(BackupUnreadError):
            await world.backups.prove(ACME, made.volumes, timeout=PATIENCE)
        return
    await world.backups.prove(ACME, made.volumes, timeout=PATIENCE)
    with pytest.raises(BackupDamagedError):
        await world.backups.prove(ACME, [replace(one, tree="0" * 64) for one in made.volumes], timeout=PATIENCE)
    with pytest.raises(BackupSnapshotNotFoundError):
        await world.backups.prove(ACME, forgotten.volumes, timeout=PATIENCE)
    with pytest.raises(BackupSnapshotNotFoundError):
        await world.backups.prove(ClientId("nobody"), made.volumes, timeout=PATIENCE)


async def test_a_client_has_a_repository_of_its_own_that_is_destroyed_with_it(world: VolumesWorld) -> None:
    of, stranger = a_sandbox(), a_sandbox(OTHER)
    for one in (of, stranger):
        await world.given(one, {Volume.HOME: HOME, Volume.WORKSPACE: WORK})
    ours, theirs = await taken(world, a_name(), of), await taken(world, a_name(), stranger)

    with pytest.raises(BackupSnapshotNotFoundError):
        await restored(world, an_order(ours, stranger))
    for _ in range(2):
        await world.backups.destroy(ACME, timeout=PATIENCE)

    with pytest.raises((BackupSnapshotNotFoundError, BackupPasswordLostError)):
        await restored(world, an_order(ours, of))
    await restored(world, an_order(theirs, stranger))


async def test_who_has_nothing_has_nothing_to_take_to_forget_or_to_check(world: VolumesWorld) -> None:
    of, client = a_sandbox(), ClientId("nobody")

    with pytest.raises(VolumesNotFoundError):
        await taken(world, a_name(), of)
    proof = await world.backups.forget(client, [a_name()], prune=True, timeout=PATIENCE)
    await world.backups.verify(client, content=False, timeout=PATIENCE)
    await world.backups.destroy(client, timeout=PATIENCE)
    await world.backups.end(a_name(), timeout=timedelta(seconds=5))
    await world.backups.end(RestoreId(f"rst-{next(_numbers)}"), timeout=timedelta(seconds=5))

    assert (list(proof.snapshots), proof.left) == ([], 0)
