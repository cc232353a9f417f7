"""Holds on pushes: what waits, what fails and what goes on meanwhile, and that nothing is held by who has gone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.images.registry import OCI_MANIFEST, Manifest
from sandboxd.manager.push_gate import GatedRegistry, PushGate
from sandboxd.manager.push_hold_ports import PushId
from sandboxd.manager.push_holding import PushHolding
from sandboxd.model.commit_errors import RootNotSavedError
from sandboxd.model.errors import DeadlineError, StaleOwnerError
from sandboxd.model.image import CommitPhase, Generation, GenerationStatus
from sandboxd.model.push_hold import HoldTakenError, PushesHeldError
from sandboxd.model.sandbox import Sandbox, SandboxState
from tests.eventually import eventually
from tests.fakes.manager import FakeClock
from tests.fakes.push_holds import FakePushHolds
from tests.fakes.registry import FakeRegistry
from tests.image_care_world import ImageCareWorld
from tests.manager_world import SOON, a_request

SPAN = timedelta(minutes=10)
MANIFEST = Manifest(media_type=OCI_MANIFEST, content=b"{}")


class GatedWorld(ImageCareWorld):
    """Commits and care behind the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = FakePushHolds()
        self.gate = PushGate(self.holds, pause=0.01)
        gated = GatedRegistry(self.registry, self.gate)
        self.builder.registry = gated  # type: ignore[assignment]  # which it only pushes to
        self.image_tools = replace(self.image_tools, registry=gated, pushes=self.gate)
        self.core, self.manager = self.replica("gated")
        self.holding = PushHolding(holds=self.holds, clock=FakeClock(), pause=timedelta(milliseconds=5))

    async def hold(self, holder: str = "gc") -> None:
        await self.holding.hold(holder, span=SPAN, timeout=SOON)

    def phase(self, sandbox: Sandbox) -> CommitPhase:
        return max(self.rows_of(sandbox), key=lambda row: row.number).progress.phase

    def rows_of(self, sandbox: Sandbox) -> list[Generation]:
        return [row for row in self.units.rows.generations.values() if row.sandbox == sandbox.id]


@pytest.fixture
def world() -> GatedWorld:
    return GatedWorld()


async def test_a_commit_waits_for_the_end_of_a_hold_says_so_and_has_captured_nothing_by_then(world: GatedWorld) -> None:
    sandbox = await world.given_active()
    await world.hold()

    committing = asyncio.create_task(world.committed(sandbox, "with a package"))
    await eventually(lambda: bool(world.rows_of(sandbox)) and world.phase(sandbox) is CommitPhase.HELD)
    captured = len(world.builder.orders)
    await world.holding.release("gc")
    made = await committing

    assert captured == 0
    assert made.status is GenerationStatus.ACTIVE
    assert world.holds.pushes == {}, "and nothing keeps the next hold waiting"


async def test_what_waits_for_its_commit_is_told_as_where_the_registry_is_away(world: GatedWorld) -> None:
    sandbox = await world.given_active()
    world.builder.roots[sandbox.id] = "with a package"
    await world.hold()

    with pytest.raises(RootNotSavedError) as refused:
        await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    during = world.row(sandbox.id).state
    await world.holding.release("gc")
    paused = await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    assert refused.value.metadata["cause"] == "PUSHES_HELD"
    assert (during, paused.state) == (SandboxState.HIBERNATED, SandboxState.PAUSED)


async def test_a_hold_is_granted_when_the_commit_before_it_has_ended(world: GatedWorld) -> None:
    sandbox = await world.given_active()
    world.builder.hanging = asyncio.Event()
    committing = asyncio.create_task(world.committed(sandbox, "with a package"))
    await eventually(lambda: bool(world.builder.orders))

    holding = asyncio.create_task(world.hold())
    await eventually(lambda: world.holds._hold is not None)
    granted_early = holding.done()
    world.builder.hanging.set()
    made = await committing
    await holding

    assert not granted_early
    assert made.status is GenerationStatus.ACTIVE
    hold = await world.holds.present()
    assert hold is not None
    assert hold.held_time is not None


async def test_a_hold_that_is_not_granted_in_time_or_whose_caller_goes_holds_nobody(world: GatedWorld) -> None:
    await world.holds.begin_push(PushId("one"), lease=SPAN)

    with pytest.raises(DeadlineError, match="1 pushes have not ended"):
        await world.holding.hold("gc", span=SPAN, timeout=timedelta(0))
    after_deadline = await world.holds.present()
    holding = asyncio.create_task(world.hold())
    await eventually(lambda: world.holds._hold is not None)
    holding.cancel()
    await asyncio.wait({holding})

    assert after_deadline is None
    assert await world.holds.present() is None


async def test_one_holds_at_a_time(world: GatedWorld) -> None:
    await world.hold()

    with pytest.raises(HoldTakenError):
        await world.hold("other")
    with pytest.raises(HoldTakenError):
        await world.holding.release("other")
    await world.hold()

    assert await world.holding.release("gc")
    assert not await world.holding.release("gc")
    await world.hold("other")


async def test_the_care_waits_for_the_next_pass_and_removes_nothing_meanwhile(world: GatedWorld) -> None:
    await world.given_images(4)
    before = world.tags()
    care = world.care()
    care._pushes = world.gate
    await world.hold()

    with pytest.raises(PushesHeldError):
        await care.run()
    shown = await care.run(dry_run=True)
    held = world.tags()
    await world.holding.release("gc")
    await care.run()

    assert held == before
    assert shown.findings.going
    assert world.tags() < before
    assert world.count("image_care_passes_total", outcome="held") == 1


async def test_every_write_to_the_registry_is_refused_while_it_is_held_and_every_read_answered(
    world: GatedWorld,
) -> None:
    gated = GatedRegistry(FakeRegistry(), world.gate)
    await gated.push("a/b", "g000001", MANIFEST, timeout=SOON)
    await world.hold()
    writes = [
        gated.mount("a/b", "sha256:1", source="c/d", timeout=SOON),
        gated.copy("a/b", "sha256:1", size=1, source="c/d", timeout=SOON),
        gated.upload("a/b", b"", digest="sha256:1", timeout=SOON),
        gated.push("a/b", "g000002", MANIFEST, timeout=SOON),
        gated.delete("a/b", MANIFEST.digest, timeout=SOON),
        gated.attach("a/b", "t", MANIFEST, timeout=SOON),
        gated.detach("a/b", MANIFEST.digest, timeout=SOON),
    ]

    refused = await asyncio.gather(*writes, return_exceptions=True)

    assert {type(one) for one in refused} == {PushesHeldError}
    assert await gated.tags("a/b", timeout=SOON) == ["g000001"]
    assert await gated.manifest("a/b", "g000001", timeout=SOON) == MANIFEST
    assert not await gated.has_blob("a/b", "sha256:1", timeout=SOON)
    assert await gated.attached("a/b", "sha256:1", timeout=SOON) == []


async def test_writes_that_belong_together_are_one_push_to_its_end(world: GatedWorld) -> None:
    gated = GatedRegistry(FakeRegistry(), world.gate)

    async with world.gate.together(timeout=SOON):
        holding = asyncio.create_task(world.hold())
        await eventually(lambda: world.holds._hold is not None)
        await gated.push("a/b", "g000001", MANIFEST, timeout=SOON)
        granted_early = holding.done()
    await holding

    assert not granted_early
    with pytest.raises(PushesHeldError):
        await gated.push("a/b", "g000002", MANIFEST, timeout=SOON)


async def test_a_push_that_cannot_be_kept_on_record_is_ended_before_its_lease_is(world: GatedWorld) -> None:
    gate = PushGate(world.holds, lease=timedelta(milliseconds=400))
    cancelled = asyncio.Event()

    async def push() -> None:
        world.holds.down = True
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    began = asyncio.get_running_loop().time()
    with pytest.raises(StaleOwnerError):
        await gate.carried(push, patient=True, waits=lambda: None, name="one")

    assert cancelled.is_set()
    assert asyncio.get_running_loop().time() - began < 2


async def test_a_push_that_may_outlive_its_process_counts_for_longer_where_it_failed(world: GatedWorld) -> None:
    gate = PushGate(world.holds, outlives=timedelta(minutes=30))

    async def fail() -> None:
        assert await world.holds.in_flight() == 1
        world.holds.now += timedelta(minutes=20)
        assert await world.holds.in_flight() == 1, "a process that died would not be heard of"
        raise DeadlineError("It has not ended in time.")

    with pytest.raises(DeadlineError):
        await gate.carried(fail, patient=True, waits=lambda: None, name="one")
    lingering = await world.holds.in_flight()
    world.holds.now += timedelta(minutes=2)

    assert (lingering, await world.holds.in_flight()) == (1, 0)
