"""Tasks under leases, and work that is cut short: what is given back, what is told, and who may go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from sandboxd.manager.cut_short import unless_cut_short
from sandboxd.manager.leased_tasks import Lease, LeasedTasks
from sandboxd.model.backup import BackupSetId
from sandboxd.model.drill import Drill, DrillId, DrillStatus, DrillTrigger
from sandboxd.model.errors import ConflictError, DeadlineError, SandboxdError, StaleOwnerError, UnavailableError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from tests.eventually import eventually
from tests.manager_world import NOW, SOON, ManagerWorld

KEY = SandboxId("work-1")


class _Place:
    """Two replicas on one database, and how many tasks the first said to run."""

    def __init__(self) -> None:
        self.world = ManagerWorld()
        self.said: list[int] = []
        self.tasks = self.replica("first", on_count=self.said.append)
        self.others = self.replica("second")

    def replica(self, name: str, *, on_count: Callable[[int], None] = lambda _: None) -> LeasedTasks:
        world = self.world
        return LeasedTasks(
            units=world.units,
            changes=world.core.changes,
            clock=world.clock,
            ids=world.ids,
            replica=name,
            on_count=on_count,
        )

    async def lease(self, tasks: LeasedTasks) -> Lease | None:
        async with self.world.units.begin() as work:
            taken = await tasks.take(work, KEY)
            await work.commit()
        return taken

    async def given_running(self) -> asyncio.Event:
        lease, end = await self.lease(self.tasks), asyncio.Event()
        assert lease is not None

        async def work() -> None:
            await end.wait()

        self.tasks.start(lease, work, name="work")
        await asyncio.sleep(0)
        return end

    async def given_drill(self, status: DrillStatus = DrillStatus.RUNNING) -> Drill:
        now = self.world.clock.now()
        drill = Drill(
            id=DrillId("drl-1"),
            backup=BackupSetId("bak-1"),
            sandbox=SandboxId("sbx-1"),
            client=ClientId("acme"),
            freelancer=FreelancerId("ada"),
            trigger=DrillTrigger.REQUEST,
            status=status,
            create_time=now,
            update_time=now,
        )
        self.world.units.rows.drills[drill.id] = drill
        return drill


@pytest.fixture
def place() -> _Place:
    return _Place()


async def test_what_is_worked_on_is_nobody_elses_until_it_has_ended(place: _Place) -> None:
    end = await place.given_running()

    assert await place.lease(place.others) is None
    end.set()
    await eventually(lambda: not place.tasks.busy(KEY))

    assert place.world.units.rows.leases == {}
    assert await place.lease(place.others) is not None
    assert place.said == [1, 0]


@pytest.mark.parametrize("error", [ConflictError("Somebody else is at it."), RuntimeError("a bug")])
async def test_what_fails_gives_its_lease_back(place: _Place, error: Exception) -> None:
    lease = await place.lease(place.tasks)
    assert lease is not None

    async def work() -> None:
        raise error

    place.tasks.start(lease, work, name="work")
    await eventually(lambda: not place.tasks.busy(KEY))

    assert (place.world.units.rows.leases, place.tasks.count) == ({}, 0)


async def test_a_renewal_keeps_a_lease_and_ends_what_another_has_taken(place: _Place) -> None:
    await place.given_running()

    for _ in range(3):
        place.world.clock.advance(10)
        await place.tasks.renew()
    assert await place.lease(place.others) is None

    place.world.clock.advance(60)  # the first stands still
    assert await place.lease(place.others) is not None
    await place.tasks.renew()
    await eventually(lambda: not place.tasks.busy(KEY))
    assert KEY in place.world.units.rows.leases  # which is the other's


async def test_who_waits_for_work_is_answered_what_it_comes_to(place: _Place) -> None:
    async def work() -> str:
        return "done"

    async def fail() -> str:
        raise ConflictError("Somebody else is at it.")

    for _ in range(2):
        lease = await place.lease(place.tasks)
        assert lease is not None
        assert await place.tasks.finish(lease, work, name="work") == "done"
    lease = await place.lease(place.tasks)
    assert lease is not None
    with pytest.raises(ConflictError):
        await place.tasks.finish(lease, fail, name="work")

    assert (place.world.units.rows.leases, place.tasks.count) == ({}, 0)


async def test_who_waits_for_work_whose_lease_is_lost_is_told(place: _Place) -> None:
    lease, begun = await place.lease(place.tasks), asyncio.Event()
    assert lease is not None

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    waiting = asyncio.create_task(place.tasks.finish(lease, work, name="work"))
    await begun.wait()
    place.world.clock.advance(60)  # the first stands still
    assert await place.lease(place.others) is not None
    await place.tasks.renew()

    with pytest.raises(StaleOwnerError):
        await waiting


async def test_what_broke_off_is_taken_up_once_and_its_attempt_counted(place: _Place) -> None:
    drill = await place.given_drill()

    adopted = [await tasks.adopt(drill.id, lambda work: work.drills) for tasks in (place.tasks, place.others)]

    assert adopted[0] is not None
    assert adopted[0][0].attempts == 2
    assert adopted[1] is None
    assert place.world.units.rows.drills[drill.id].attempts == 2


async def test_what_has_ended_or_is_gone_is_not_taken_up(place: _Place) -> None:
    drill = await place.given_drill(DrillStatus.PASSED)

    assert await place.tasks.adopt(drill.id, lambda work: work.drills) is None
    assert await place.tasks.adopt(DrillId("drl-gone"), lambda work: work.drills) is None
    assert place.world.units.rows.leases == {}


async def test_who_waits_is_answered_when_the_task_has_let_go_and_told_where_it_is_late(place: _Place) -> None:
    drill = await place.given_drill()
    adopted, end = await place.tasks.adopt(drill.id, lambda work: work.drills), asyncio.Event()
    assert adopted is not None

    async def work_on() -> None:
        async with place.world.units.begin() as work:
            await work.drills.save(adopted[0].end(DrillStatus.PASSED, at=place.world.clock.now()))
            await work.commit()
        await end.wait()

    with pytest.raises(DeadlineError):
        await place.tasks.ended(drill.id, lambda work: work.drills, timeout=NOW, late=lambda _: DeadlineError("late"))
    place.tasks.start(adopted[1], work_on, name="drill")
    waiting = asyncio.create_task(
        place.tasks.ended(drill.id, lambda work: work.drills, timeout=SOON, late=lambda _: DeadlineError("late"))
    )
    await eventually(lambda: not place.world.units.rows.drills[drill.id].in_flight)
    assert not waiting.done()
    end.set()

    assert (await waiting).status is DrillStatus.PASSED
    assert place.world.units.rows.leases == {}


async def test_a_replica_that_goes_leaves_no_lease(place: _Place) -> None:
    await place.given_running()

    await place.tasks.drain(grace=NOW)

    assert (place.world.units.rows.leases, place.tasks.count) == ({}, 0)


async def _forever() -> SandboxdError:
    await asyncio.Event().wait()
    return ConflictError("never")


async def test_work_that_ends_is_answered() -> None:
    async def work() -> str:
        return "done"

    assert await unless_cut_short(work(), _forever(), name="work") == "done"


async def test_what_is_watched_for_cuts_the_work_short() -> None:
    undone = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            undone.set()

    async def watch() -> SandboxdError:
        await asyncio.sleep(0)
        return ConflictError("Enough.")

    with pytest.raises(ConflictError, match="Enough"):
        await unless_cut_short(work(), watch(), name="work")

    assert undone.is_set()


async def test_work_that_had_just_come_to_its_end_is_answered_all_the_same() -> None:
    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done"
        return ""

    async def watch() -> SandboxdError:
        await asyncio.sleep(0)
        return ConflictError("Enough.")

    assert await unless_cut_short(work(), watch(), name="work") == "done"


async def test_what_the_work_fails_with_is_raised_and_nobody_watches_on() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0)
        raise UnavailableError("It does not answer.")

    async def watch() -> SandboxdError:
        try:
            return await _forever()
        finally:
            ended.set()

    with pytest.raises(UnavailableError):
        await asyncio.wait_for(unless_cut_short(work(), watch(), name="work"), SOON / timedelta(seconds=1))

    assert ended.is_set()
