"""What is abandoned: who says so, what it costs, when it goes, and what never goes by itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from sandboxd.manager.abandoned import AbandonedCare, NotAbandonedError, NotRemovableError
from sandboxd.manager.abandoned_looking import OTHERS, AbandonedLooking
from sandboxd.manager.abandoned_metrics import AbandonedMetrics
from sandboxd.manager.abandoned_places import RepositoriesOfBackups
from sandboxd.model.abandoned import AbandonedKind, AbandonedPolicy, AbandonedReason, Thing
from sandboxd.model.backup import BackupMethod, BackupSetId, BackupSetStatus, ReleasedVolumes, SnapshotId
from sandboxd.model.client import AccountState, Client
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.image import CommitTrigger, Generation, GenerationId, GenerationStatus
from sandboxd.model.sandbox import Sandbox
from tests.fakes.abandoned import FakePlace, FakePlaces, FakeSightings
from tests.fakes.lifecycle import FakeDuties
from tests.manager_world import SOON, ManagerWorld, a_request

HOUR, DAY = 3600, 86_400
LONG = timedelta(minutes=10)
K, R = AbandonedKind, AbandonedReason


@dataclass
class World:
    manager: ManagerWorld = field(default_factory=lambda: ManagerWorld(backups=True))
    place: FakePlace = field(default_factory=FakePlace)
    others: FakePlaces = field(default_factory=FakePlaces)
    sightings: FakeSightings = field(default_factory=FakeSightings)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.care = self.replica("first", self.registry)

    def replica(self, name: str, registry: CollectorRegistry) -> AbandonedCare:
        policy = AbandonedPolicy(grace=timedelta(days=7), pause=timedelta(hours=1), prices={"ssd": 0.17, "*": 0.02})
        return AbandonedCare(
            units=self.manager.units,
            looking=AbandonedLooking(
                units=self.manager.units,
                fixed=[self.place],
                changing=[self.others],
                sightings=self.sightings,
                policy=policy,
                clock=self.manager.clock,
            ),
            policy=policy,
            duties=FakeDuties(self.manager.duties, replica=name),
            clock=self.manager.clock,
            metrics=AbandonedMetrics(registry),
        )

    async def reasons(self) -> dict[str, AbandonedReason]:
        return {one.thing.name: one.reason for one in (await self.care.look(timeout=LONG)).found}

    async def passed(self, days: float) -> None:
        """Let time go by with a pass each hour."""
        for _ in range(round(days * 24)):
            self.manager.clock.advance(HOUR)
            await self.care.care()

    async def released(self) -> Sandbox:
        sandbox = await self.manager.given_active()
        await self.manager.manager.terminate(a_request(), sandbox.id, timeout=SOON)
        row, now = self.manager.row(sandbox.id), self.manager.clock.now()
        assert row.incarnation is not None
        said = ReleasedVolumes(backup=BackupSetId("bak-1"), incarnation=row.incarnation, begin_time=now, end_time=now)
        self.manager.units.rows.sandboxes[sandbox.id] = replace(row, released=said)
        return sandbox


@pytest.fixture
def world() -> World:
    return World()


def a_volume(sandbox: str, *, size_bytes: int | None = None, storage: str = "") -> Thing:
    return Thing(
        kind=K.VOLUME,
        name=f"ns/home-{sandbox}",
        identity="1",
        sandbox=SandboxId(sandbox),
        size_bytes=size_bytes,
        storage=storage,
    )


async def test_rows_say_whose_a_volume_is(world: World) -> None:
    active = await world.manager.given_active()
    kept = await world.manager.given_active()
    await world.manager.manager.terminate(a_request(), kept.id, timeout=SOON)
    released = await world.released()
    world.place.things = [a_volume(one) for one in (active.id, kept.id, released.id, "sbx-unknown")]

    assert await world.reasons() == {f"ns/home-{released.id}": R.RELEASED, "ns/home-sbx-unknown": R.NO_ROW}


async def test_what_a_row_gives_up_goes_after_grace_and_what_no_row_knows_of_does_not(world: World) -> None:
    released = await world.released()
    world.place.things = [a_volume(released.id), a_volume("sbx-unknown")]

    await world.passed(6.9)
    assert world.place.removed == []
    await world.passed(1)

    assert world.place.removed == [f"ns/home-{released.id}"]
    assert [one.name for one in world.place.things] == ["ns/home-sbx-unknown"]


async def test_the_empty_namespace_of_a_deleted_client_goes_after_grace_and_another_does_not(world: World) -> None:
    now = world.manager.clock.now()
    deleted, active = AccountState.DELETED, AccountState.ACTIVE
    for name, state in (("gone", deleted), ("full", deleted), ("there", active)):
        client = Client(id=ClientId(name), state=state, create_time=now, update_time=now)
        world.manager.units.rows.clients[client.id] = client
    names = {"gone": True, "there": True, "unknown": True, "full": False}
    world.place.things = [
        Thing(kind=K.NAMESPACE, name=f"client-{name}", client=ClientId(name), removable=empty)
        for name, empty in names.items()
    ]

    reasons = await world.reasons()
    await world.passed(7.1)

    assert reasons == {
        "client-gone": R.CLIENT_DELETED,
        "client-full": R.CLIENT_DELETED,
        "client-unknown": R.NO_ROW,
    }
    assert world.place.removed == ["client-gone"]


async def test_a_clock_that_jumps_ends_no_grace_and_one_look_is_never_enough(world: World) -> None:
    released = await world.released()
    world.place.things = [a_volume(released.id)]

    for jump in (0, 365 * DAY, -365 * DAY, 365 * DAY):
        world.manager.clock.advance(jump)
        await world.care.care()

    assert world.place.removed == []


async def test_what_is_needed_in_between_begins_its_grace_anew(world: World) -> None:
    released = await world.released()
    world.place.things = [a_volume(released.id)]
    await world.passed(5)
    row = world.manager.row(released.id)
    world.manager.units.rows.sandboxes[released.id] = replace(row, released=None)
    await world.passed(0.1)
    world.manager.units.rows.sandboxes[released.id] = row

    await world.passed(5)

    assert world.place.removed == []


async def test_two_replicas_that_look_at_the_same_time_remove_a_thing_once(world: World) -> None:
    released = await world.released()
    world.place.things = [a_volume(released.id)]
    other = world.replica("second", CollectorRegistry())

    for _ in range(8 * 24):
        world.manager.clock.advance(HOUR)
        await world.care.care()
        await other.care()

    assert world.place.removed == [f"ns/home-{released.id}"]


async def test_a_place_that_does_not_answer_is_named_and_forgets_nothing(world: World) -> None:
    released = await world.released()
    world.place.things = [a_volume(released.id)]
    await world.passed(6)
    world.place.trouble = UnavailableError("The cluster is away.")

    report = await world.care.look(timeout=LONG)
    world.place.trouble = None
    await world.passed(1.2)

    assert report.unasked == {"the world": "The cluster is away."}
    (known,) = report.found
    assert (known.thing.name, known.current, known.remove_time) == (f"ns/home-{released.id}", False, None)
    assert world.place.removed == [f"ns/home-{released.id}"]
    assert world.registry.get_sample_value("sandboxd_abandoned_removed_total", {"kind": "volume"}) == 1


async def test_each_thing_is_told_with_what_it_costs_and_when_it_goes(world: World) -> None:
    released = await world.released()
    world.place.things = [
        a_volume(released.id, size_bytes=10 * 10**9, storage="ssd"),
        a_volume("sbx-unknown", size_bytes=10**9, storage="slow"),
        a_volume("sbx-who-knows"),
    ]

    found = {one.thing.name: one for one in (await world.care.look(timeout=LONG)).found}

    first = found[f"ns/home-{released.id}"]
    assert first.cost_micros == 1_700_000
    assert first.remove_time == world.manager.clock.now() + timedelta(days=7)
    assert found["ns/home-sbx-unknown"].cost_micros == 20_000
    assert found["ns/home-sbx-unknown"].remove_time is None
    assert found["ns/home-sbx-who-knows"].cost_micros is None
    assert world.registry.get_sample_value("sandboxd_abandoned_bytes", {"kind": "volume"}) == 11 * 10**9
    assert world.registry.get_sample_value("sandboxd_abandoned_by_hand") == 2


async def test_a_person_removes_what_is_abandoned_and_nothing_else(world: World) -> None:
    active = await world.manager.given_active()
    world.place.things = [
        a_volume("sbx-unknown"),
        a_volume(active.id),
        Thing(kind=K.NAMESPACE, name="client-gone", client=ClientId("gone"), removable=False),
    ]

    gone = await world.care.remove(K.VOLUME, "ns/home-sbx-unknown", timeout=LONG)
    with pytest.raises(NotAbandonedError):
        await world.care.remove(K.VOLUME, f"ns/home-{active.id}", timeout=LONG)
    with pytest.raises(NotRemovableError):
        await world.care.remove(K.NAMESPACE, "client-gone", timeout=LONG)

    assert gone.reason is R.NO_ROW
    assert world.place.removed == ["ns/home-sbx-unknown"]


async def test_a_pass_removes_no_more_than_its_batch(world: World) -> None:
    world.care.batch = 2
    world.place.things = [Thing(kind=K.WORK, name=f"ns/backup-{number}", said=R.EXPIRED) for number in range(5)]
    left = []

    await world.passed(6.9)
    for _ in range(8):
        await world.passed(1 / 24)
        left.append(len(world.place.things))

    assert left[-1] == 0
    assert all(before - after <= 2 for before, after in zip([5, *left], left, strict=False))


async def test_snapshots_are_needed_as_long_as_their_set_may_be_restored(world: World) -> None:
    sandbox = await world.manager.given_active()
    world.manager.volumes.given(sandbox.id, home={b"a": b"1"})
    made = await world.manager.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
    client = ClientId("acme")
    world.place.things = [
        Thing(kind=K.SNAPSHOT, name=f"acme/{made.id}", client=client, backup=made.id),
        Thing(kind=K.SNAPSHOT, name="acme/bak-none", client=client, backup="bak-none"),
    ]

    assert await world.reasons() == {"acme/bak-none": R.NO_ROW}


async def test_each_clients_backups_are_a_place_and_what_no_backup_is_of_goes_as_its_row_says(world: World) -> None:
    manager = world.manager
    sandbox = await manager.given_active()
    manager.volumes.given(sandbox.id, home={b"a": b"1"})
    needed, failed = [await manager.manager.backups.create(a_request(), sandbox.id, timeout=SOON) for _ in range(2)]
    row = manager.units.rows.backup_sets[failed.id]
    manager.units.rows.backup_sets[failed.id] = replace(row, status=BackupSetStatus.FAILED)
    kept = next(one for one in manager.volumes.kept.values() if one.backup == needed.id)
    manager.volumes.kept[SnapshotId("other")] = replace(kept, backup=BackupSetId("bak-none"))
    places = RepositoriesOfBackups(
        units=manager.units, backups={BackupMethod.FILES: manager.volumes}, every=timedelta(days=1)
    )
    world.care.looking.changing = [places]

    assert await world.reasons() == {f"acme/{failed.id}": R.SET_ENDED, "acme/bak-none": R.NO_ROW}
    await world.passed(7.1)
    left = {one.backup for one in manager.volumes.kept.values()}
    await world.care.remove(K.SNAPSHOT, "acme/bak-none", timeout=LONG)

    assert left == {needed.id, "bak-none"}
    assert {one.backup for one in manager.volumes.kept.values()} == {needed.id}
    assert await world.reasons() == {}


def a_generation(number: int, status: GenerationStatus, *, at: datetime) -> Generation:
    return Generation(
        id=GenerationId(f"gen-{number}"),
        sandbox=SandboxId(f"sbx-{number}"),
        client=ClientId("acme"),
        freelancer=FreelancerId("ada"),
        number=number + 1,
        incarnation=IncarnationId("inc-1"),
        trigger=CommitTrigger.REQUEST,
        repository="acme/gemini-cli-user-ada",
        status=status,
        create_time=at,
        update_time=at,
    )


def work_left(name: str) -> Thing:
    return Thing(kind=K.WORK, name=name, said=R.EXPIRED)


async def test_a_look_that_has_no_time_left_goes_on_with_the_others_next_time(world: World) -> None:
    slow = timedelta(minutes=5)
    world.others.some = [
        FakePlace(
            called=f"place {number}",
            things=[work_left(f"ns/work-{number}")],
            looking=lambda: world.manager.clock.advance(slow.total_seconds()),
        )
        for number in range(5)
    ]

    reports = [await world.care.look(timeout=LONG) for _ in range(3)]

    told = [{one.thing.name for one in report.found} for report in reports]
    assert [len(names) for names in told] == [2, 4, 5], "what an earlier look found is told as well"
    assert all(OTHERS in report.unasked for report in reports)
    assert sorted(one.looks for one in world.others.some) == [1, 1, 1, 1, 2], "nobody is starved"


async def test_a_place_that_costs_something_is_looked_at_rarely_and_its_rows_are_asked_each_time(world: World) -> None:
    released = await world.released()
    dear = FakePlace(called="dear", rarely=timedelta(days=1), things=[a_volume(released.id)])
    world.others.some = [dear]

    await world.passed(6.9)
    assert (7 <= dear.looks <= 8, dear.removed) == (True, [])
    row = world.manager.row(released.id)
    world.manager.units.rows.sandboxes[released.id] = replace(row, released=None)
    await world.passed(1 / 24)
    world.manager.units.rows.sandboxes[released.id] = row
    await world.passed(6.9)
    assert dear.removed == [], "it was needed in between"
    await world.passed(0.3)

    assert dear.removed == [f"ns/home-{released.id}"]
    assert (await world.care.look(timeout=LONG)).found == [], "and it is told no more, before anybody looks again"


async def test_places_that_are_no_more_are_forgotten(world: World) -> None:
    world.others.some = [FakePlace(called="gone soon", things=[work_left("ns/work")])]
    await world.care.look(timeout=LONG)

    world.others.some = []

    assert (await world.care.look(timeout=LONG)).found == []
    assert set(world.sightings.seen) == {"the world"}


async def test_an_upload_is_abandoned_when_its_commit_is_over_and_not_before(world: World) -> None:
    now = world.manager.clock.now()
    rows = world.manager.units.rows
    for number, status in enumerate((GenerationStatus.BUILDING, GenerationStatus.FAILED, GenerationStatus.ACTIVE)):
        made = a_generation(number, status, at=now)
        rows.generations[made.id] = made
    commits = [*rows.generations, GenerationId("gen-none"), GenerationId("")]
    world.place.things = [
        Thing(kind=K.UPLOAD, name=f"a/{commit}", commit=commit, said=None if commit else R.EXPIRED)
        for commit in commits
    ]

    found = await world.reasons()

    assert found == {
        f"a/{commits[1]}": R.COMMIT_ENDED,
        f"a/{commits[2]}": R.COMMIT_ENDED,
        "a/gen-none": R.COMMIT_ENDED,
        "a/": R.EXPIRED,
    }
