"""The gateway when its ledger is down, slow or forgetful, and when a gateway dies: nothing used is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.gateway.breaker import BreakerPolicy
from sandboxd.gateway.config import GatewayTimeouts
from sandboxd.gateway.spool import SettlementSpool
from sandboxd.model.usage import NO_TOKENS, CallError, TokenCounts, UsageEventId, UsageState
from sandboxd.monitor.sweep import OrphanSweep
from tests.contract.usage_world import a_call, a_settlement
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.gateway_world import CANARY, GatewayWorld, RealClock, config_for, error_of


@pytest.fixture
def fake() -> Iterator[FakeGemini]:
    with FakeGemini(key=CANARY) as fake:
        yield fake


@pytest.fixture
async def world(fake: FakeGemini, tmp_path: Path) -> AsyncIterator[GatewayWorld]:
    quick = GatewayTimeouts(ledger_open=0.3, ledger_settle=0.3)
    async with GatewayWorld(fake=fake, config=config_for(fake, tmp_path, timeouts=quick)).running() as world:
        yield world


def spooled(world: GatewayWorld) -> list[str]:
    return sorted(path.stem for path in world.config.spool_directory.glob("*.settlement"))


# --- before the call


async def test_no_call_is_made_while_the_ledger_is_down(world: GatewayWorld) -> None:
    world.ledger.down = True

    status, body = await world.ask("hello")

    error = error_of(body)
    assert (status, error["status"], error["details"][0]["reason"]) == (503, "UNAVAILABLE", "LEDGER_UNAVAILABLE")
    assert world.fake.requests == []


async def test_no_call_is_made_while_the_ledger_hangs(world: GatewayWorld) -> None:
    world.ledger.hanging = asyncio.Event()

    status, _ = await world.ask("hello")

    assert (status, world.fake.requests) == (503, [])
    world.ledger.hanging.set()


async def test_a_row_whose_commit_was_not_answered_is_settled_at_nothing(world: GatewayWorld) -> None:
    world.ledger.answer_lost = True
    status, _ = await world.ask("hello")
    world.ledger.answer_lost = False

    row = await world.settled()

    assert (status, world.fake.requests) == (503, [])
    assert (row.state, row.tokens, row.error_reason) == (UsageState.SETTLED, NO_TOKENS, CallError.NOT_FORWARDED)


async def test_a_gateway_is_ready_only_while_its_ledger_answers(world: GatewayWorld) -> None:
    async def status() -> int:
        async with world.http.get(f"{world.gateway.admin_url}/readyz") as answer:
            return answer.status

    async def is_ready() -> bool:
        return await status() == 200

    async def is_not_ready() -> bool:
        return await status() == 503

    await eventually(is_ready)
    world.ledger.down = True
    await eventually(is_not_ready)
    world.ledger.down = False
    await eventually(is_ready)


async def test_a_gateway_that_starts_without_its_ledger_serves_when_it_comes(fake: FakeGemini, tmp_path: Path) -> None:
    world = GatewayWorld(fake=fake, config=config_for(fake, tmp_path))
    world.ledger.down = True
    async with world.running():
        before, _ = await world.ask("hello")
        world.ledger.down = False
        after, _ = await world.ask("hello")

    assert (before, after) == (503, 200)
    assert world.rows[0].cost is not None


# --- after the call


async def test_a_settlement_that_the_ledger_cannot_take_waits_on_disk_and_arrives_later(world: GatewayWorld) -> None:
    async with world.request("fake:gated") as answer:
        await answer.content.readuntil(b"\r\n\r\n")
        world.ledger.down = True
        world.fake.gate.set()
        rest = await asyncio.wait_for(answer.read(), 5)
        waiting, state_meanwhile = spooled(world), world.rows[0].state
        world.ledger.down = False

    row = await world.settled()
    await eventually(lambda: spooled(world) == [])
    assert b"three four." in rest
    assert (waiting, state_meanwhile) == ([row.id], UsageState.OPEN)
    assert (row.state, row.tokens) == (UsageState.SETTLED, TokenCounts(prompt=110, output=4, total=114))


async def test_a_hanging_ledger_holds_up_the_end_of_an_answer_for_a_moment_only(world: GatewayWorld) -> None:
    async with world.request("fake:gated") as answer:
        await answer.content.readuntil(b"\r\n\r\n")
        hanging = world.ledger.hanging = asyncio.Event()
        world.fake.gate.set()
        await asyncio.wait_for(answer.read(), 2)
        waiting = spooled(world)
        world.ledger.hanging = None
        hanging.set()

    row = await world.settled()
    assert (waiting, row.tokens.total) == ([row.id], 114)


async def test_a_spooled_settlement_survives_the_gateway(fake: FakeGemini, tmp_path: Path) -> None:
    world = GatewayWorld(fake=fake, config=config_for(fake, tmp_path))
    async with world.running(), world.request("fake:gated") as answer:
        await answer.content.readuntil(b"\r\n\r\n")
        world.ledger.down = True
        world.fake.gate.set()
        await answer.read()
    left, state_between = spooled(world), world.rows[0].state
    world.ledger.down = False

    async with world.running():
        row = await world.settled()

    assert (left, state_between) == ([row.id], UsageState.OPEN)
    assert (row.state, row.tokens.total, row.finish_reason) == (UsageState.SETTLED, 114, "STOP")
    assert spooled(world) == []


async def test_a_settlement_whose_commit_was_not_answered_is_counted_once(world: GatewayWorld) -> None:
    async with world.request("fake:gated") as answer:
        await answer.content.readuntil(b"\r\n\r\n")
        world.ledger.answer_lost = True
        world.fake.gate.set()
        await answer.read()
        world.ledger.answer_lost = False

    await eventually(lambda: spooled(world) == [])
    [row] = world.rows
    assert (row.state, row.tokens.total) == (UsageState.SETTLED, 114)


async def test_with_a_full_spool_no_new_call_begins(fake: FakeGemini, tmp_path: Path) -> None:
    world = GatewayWorld(fake=fake, config=config_for(fake, tmp_path, spool_limit=1))
    async with world.running():
        async with world.request("fake:gated") as answer:
            await answer.content.readuntil(b"\r\n\r\n")
            world.ledger.down = True
            world.fake.gate.set()
            await answer.read()
        refused, _ = await world.ask("hello")
        world.ledger.down = False
        await eventually(lambda: spooled(world) == [])
        served, _ = await world.ask("hello")

    assert (refused, served) == (503, 200)


# --- the gateway dies


async def test_calls_of_a_dead_gateway_are_settled_as_estimated_by_the_next_one(
    fake: FakeGemini, tmp_path: Path
) -> None:
    world = GatewayWorld(fake=fake, config=config_for(fake, tmp_path))
    dead = a_call(world.identity)
    await world.ledger.open_call(dead)
    async with world.running():
        row = await world.settled()

    assert (row.state, row.error_reason) == (UsageState.ESTIMATED, CallError.GATEWAY_LOST)
    assert row.tokens == TokenCounts(prompt=1000, output=8192, total=9192)
    assert row.cost is not None


async def test_the_sweep_takes_the_larger_of_what_was_seen_and_what_was_reserved(world: GatewayWorld) -> None:
    async with world.request("fake:hang") as answer:
        await answer.content.readuntil(b"\r\n\r\n")
        await eventually(lambda: world.rows[0].tokens.total)
        seen = replace(world.rows[0], gateway=a_call(world.identity).gateway)
        world.ledger.rows[seen.id] = replace(seen, tokens=TokenCounts(prompt=5000, cached=64, output=3, total=5003))
        await eventually(lambda: world.rows[0].state is UsageState.ESTIMATED)
        row = world.rows[0]

    assert row.tokens == TokenCounts(prompt=5000, cached=64, output=8192, total=13192)


async def test_a_living_gateways_calls_are_not_swept(world: GatewayWorld) -> None:
    async with world.request("fake:hang") as answer:
        await answer.content.readuntil(b"\r\n\r\n")
        sweep = OrphanSweep(ledger=world.ledger, prices=world.prices, clock=RealClock())

        swept = await sweep.run(silent_for=timedelta(seconds=30))

        assert (swept, world.rows[0].state) == (0, UsageState.OPEN)


# --- the circuit


async def test_the_circuit_opens_after_failures_in_a_row_and_closes_by_a_probe(
    fake: FakeGemini, tmp_path: Path
) -> None:
    policy = BreakerPolicy(failures=3, rest_seconds=0.3)
    world = GatewayWorld(fake=fake, config=config_for(fake, tmp_path, breaker=policy))
    async with world.running():
        failing = [(await world.ask("fake:503(times=-1)"))[0] for _ in range(3)]
        async with world.request("hello") as answer:
            resting = (answer.status, answer.headers["retry-after"], error_of(await answer.read())["details"])
        metrics = await world.metrics()
        rows, requests = len(world.rows), len(fake.requests)

        async def served() -> bool:
            return (await world.ask("hello"))[0] == 200

        await eventually(served)

    assert failing == [503, 503, 503]
    assert (resting[0], resting[1]) == (503, "1")
    assert [detail["@type"].split(".")[-1] for detail in resting[2]] == ["ErrorInfo", "RetryInfo"]
    assert (rows, requests) == (3, 3)
    assert 'sandboxd_gateway_circuit_state{state="open"} 1.0' in metrics


async def test_rate_limits_do_not_open_the_circuit(fake: FakeGemini, tmp_path: Path) -> None:
    world = GatewayWorld(fake=fake, config=config_for(fake, tmp_path, breaker=BreakerPolicy(failures=2)))
    async with world.running():
        found = [(await world.ask("fake:429(times=-1)"))[0] for _ in range(5)]

    assert found == [429] * 5


# --- the spool itself


async def test_the_spool_gives_back_exactly_what_it_was_given(tmp_path: Path) -> None:
    first, second = UsageEventId("use-1"), UsageEventId("use-2")
    bare = a_settlement(cost=None, price_id=None, error_reason=CallError.CLIENT_GONE, http_status=None)
    bare = replace(bare, first_byte_time=None, model_version=None, finish_reason=None, block_reason="SAFETY")
    spool = SettlementSpool(tmp_path / "spool", limit=10)
    await spool.keep(second, bare)
    await spool.keep(first, a_settlement())
    (tmp_path / "spool" / "use-3.settlement.1.draft").write_bytes(b"{half")
    (tmp_path / "spool" / "use-4.settlement").write_bytes(b"{half")

    again = SettlementSpool(tmp_path / "spool", limit=10)
    await again.load()

    assert await again.waiting() == [(first, a_settlement()), (second, bare)]


async def test_a_settlement_is_kept_in_memory_while_the_disk_fails(tmp_path: Path) -> None:
    blocked = tmp_path / "spool"
    blocked.write_text("a file where the directory should be")
    spool = SettlementSpool(blocked, limit=10)

    await spool.keep(UsageEventId("use-1"), a_settlement())
    in_memory = await spool.waiting()
    blocked.unlink()
    await spool.waiting()

    assert len(in_memory) == 1
    assert (blocked / "use-1.settlement").exists()
