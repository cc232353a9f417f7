import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sandboxd.bootstrap.operator import operator_settings
from sandboxd.kubeapi.errors import KubeUnavailableError
from sandboxd.kubeapi.ports import Json
from sandboxd.operator.leader import Leadership, LeaseSettings, NotLeaderError
from sandboxd.settings import Settings
from tests.eventually import eventually
from tests.fakes.kube import FakeKube
from tests.fakes.manager import FakeClock

DURATION = 0.05
DOWN = KubeUnavailableError("it does not answer")


class Candidate:
    def __init__(self, name: str, kube: FakeKube, clock: FakeClock) -> None:
        self.heard: list[bool] = []
        settings = LeaseSettings(namespace="own", instance="test", identity=name, duration=timedelta(seconds=DURATION))
        self.leadership = Leadership(kube, settings, clock=clock, changed=self.heard.append)
        self.task: asyncio.Task[Any] | None = None

    def stand(self) -> None:
        self.task = asyncio.create_task(self.leadership.run())

    async def withdraw(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def kube() -> FakeKube:
    made = FakeKube()
    await made.put("namespaces", {"metadata": {"name": "own"}})
    return made


def lease(kube: FakeKube) -> Json:
    (found,) = kube.all("leases")
    return found


def renewals(kube: FakeKube) -> int:
    return sum(1 for method, _ in kube.requests if method == "PUT")


async def test_the_first_leads_and_the_second_waits(kube: FakeKube) -> None:
    clock = FakeClock()
    one, two = Candidate("one", kube, clock), Candidate("two", kube, clock)

    one.stand()
    await eventually(lambda: one.leadership.leads)
    two.stand()
    await eventually(lambda: renewals(kube) > 3)

    assert not two.leadership.leads
    with pytest.raises(NotLeaderError):
        two.leadership.check()
    await one.withdraw()
    await two.withdraw()


async def test_a_leader_that_ends_is_followed_without_waiting(kube: FakeKube) -> None:
    clock = FakeClock()  # it stands still: no lease ever runs out
    one, two = Candidate("one", kube, clock), Candidate("two", kube, clock)
    one.stand()
    await eventually(lambda: one.leadership.leads)

    await one.withdraw()
    two.stand()

    await eventually(lambda: two.leadership.leads)
    assert one.heard == [True, False]
    await two.withdraw()


async def test_a_silent_leader_is_followed_after_the_whole_duration_by_the_follower_s_clock(
    kube: FakeKube,
) -> None:
    clock, own = FakeClock(), FakeClock()
    one, two = Candidate("one", kube, own), Candidate("two", kube, clock)
    one.stand()
    await eventually(lambda: one.leadership.leads)
    assert one.task is not None
    one.task.cancel()
    kube.away = DOWN  # it dies, and cannot give the Lease up
    await asyncio.gather(one.task, return_exceptions=True)
    kube.away = None

    two.stand()
    asked = len(kube.requests)
    await eventually(lambda: len(kube.requests) > asked + 5)
    assert not two.leadership.leads
    clock.advance(2)

    await eventually(lambda: two.leadership.leads)
    assert lease(kube)["spec"]["leaseTransitions"] == 1
    await two.withdraw()


async def test_a_leader_that_cannot_renew_stops_writing_before_anybody_can_follow(kube: FakeKube) -> None:
    clock = FakeClock()
    one = Candidate("one", kube, clock)
    one.stand()
    await eventually(lambda: one.leadership.leads)

    kube.away = DOWN
    clock.advance(DURATION * 0.8)

    assert not one.leadership.leads
    with pytest.raises(NotLeaderError):
        one.leadership.check()
    await eventually(lambda: one.heard == [True, False])
    kube.away = None
    await eventually(lambda: one.leadership.leads)
    assert one.heard == [True, False, True]
    await one.withdraw()


async def test_a_leader_whose_lease_was_taken_stops_at_once(kube: FakeKube) -> None:
    clock = FakeClock()
    one = Candidate("one", kube, clock)
    one.stand()
    await eventually(lambda: one.leadership.leads)

    taken = lease(kube)
    await kube.put("leases", {**taken, "spec": {**taken["spec"], "holderIdentity": "two"}})

    await eventually(lambda: one.heard == [True, False])
    assert lease(kube)["spec"]["holderIdentity"] == "two"
    await one.withdraw()


def test_two_operators_of_one_name_are_still_two(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, replica="same")

    one, two = operator_settings(settings), operator_settings(settings)

    assert one.identity != two.identity
    assert one.identity.startswith("same-")
