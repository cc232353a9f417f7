"""The machine's clock is set by ten minutes, ahead and back, while all runs: nothing ends early, nothing is lost.

Leases and fences go by PostgreSQL's clock and by monotonic ones; what is left to this clock is told here. Processes
whose clock is really set are in tests/e2e/test_clock.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typing_extensions import override

from sandboxd.bootstrap.sources import RandomIds, SystemClock
from sandboxd.manager.creation import NewSandbox
from sandboxd.model.ids import is_id
from sandboxd.model.sandbox import SandboxState
from sandboxd.model.tokens import SANDBOX_TOKEN_LIFETIME
from sandboxd.model.usage import UsageState
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.gateway_world import CANARY, GatewayWorld, config_for, error_of
from tests.manager_world import SOON, ManagerWorld, a_request

TEN_MINUTES = 600.0
LIFETIME = SANDBOX_TOKEN_LIFETIME
BOTH_WAYS = pytest.mark.parametrize("seconds", [TEN_MINUTES, -TEN_MINUTES])


@pytest.fixture
def fake() -> Iterator[FakeGemini]:
    with FakeGemini(key=CANARY) as fake:
        yield fake


@pytest.fixture
async def world(fake: FakeGemini, tmp_path: Path) -> AsyncIterator[GatewayWorld]:
    async with GatewayWorld(fake=fake, config=config_for(fake, tmp_path)).running() as world:
        yield world


@BOTH_WAYS
async def test_a_call_that_runs_when_the_clock_is_set_ends_well_and_not_before_it_began(
    world: GatewayWorld, seconds: float
) -> None:
    async with world.request("fake:gated") as answer:
        await answer.content.readuntil(b"\r\n\r\n")
        world.clock.offset = timedelta(seconds=seconds)
        await asyncio.sleep(0.2)  # some beats: neither the beat nor the sweep takes the living gateway for dead
        world.fake.gate.set()
        await answer.read()

    row = await world.settled()
    assert (row.state, row.tokens.total, row.error_reason) == (UsageState.SETTLED, 114, None)
    assert row.end_time is not None
    assert row.first_byte_time is not None
    assert row.start_time <= row.first_byte_time <= row.end_time


@BOTH_WAYS
async def test_a_token_of_before_is_refused_clearly_and_a_new_one_works(world: GatewayWorld, seconds: float) -> None:
    before = world.token()
    world.clock.offset = timedelta(seconds=seconds + 10)

    refused, body = await world.ask("hello", headers={"authorization": f"Bearer {before}"})
    served, _ = await world.ask("hello")

    reason = "TOKEN_EXPIRED" if seconds > 0 else "TOKEN_INVALID"
    assert (refused, error_of(body)["details"][0]["reason"], served) == (401, reason, 200)


@BOTH_WAYS
async def test_agents_get_new_tokens_as_soon_as_the_clock_was_set(seconds: float) -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    agent = world.backend.agent(sandbox.id)
    running = asyncio.create_task(world.core.token_keeper.run())
    await eventually(lambda: agent.model_endpoint.get("expire_time") == world.clock.now() + LIFETIME)
    before = agent.model_endpoint["token"]

    world.clock.step(seconds)
    await eventually(lambda: agent.model_endpoint["token"] != before, within=10)

    assert agent.model_endpoint["expire_time"] == world.clock.now() + LIFETIME
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@BOTH_WAYS
async def test_a_create_that_is_under_way_when_the_clock_is_set_is_finished_once(seconds: float) -> None:
    world = ManagerWorld()
    world.backend.hanging = asyncio.Event()
    request = a_request()
    creating = asyncio.create_task(world.manager.create(request, NewSandbox(), timeout=SOON))
    await eventually(lambda: world.units.rows.sandboxes)

    world.clock.step(seconds)
    world.backend.hanging.set()
    created = await creating
    repeated = await world.manager.create(request, NewSandbox(), timeout=SOON)

    assert (created.state, repeated.id) == (SandboxState.ACTIVE, created.id)
    assert len(world.units.rows.sandboxes) == 1


def test_ids_stay_unique_and_sort_by_the_time_that_they_were_told() -> None:
    class Stepped(SystemClock):
        offset = timedelta(0)

        @override
        def now(self) -> datetime:
            return datetime.now(UTC) + self.offset

    clock = Stepped()
    ids = RandomIds(clock)
    made: list[str] = []
    for seconds in (0, TEN_MINUTES, -TEN_MINUTES, 0):
        clock.offset = timedelta(seconds=seconds)
        made += [ids.new("use") for _ in range(1000)]

    assert len(set(made)) == len(made)
    assert all(is_id(one, "use") for one in made)
    assert max(made[2000:3000]) < min(made[0:1000]) < max(made[0:1000]) < min(made[1000:2000])
