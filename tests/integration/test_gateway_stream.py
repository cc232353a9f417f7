"""Calls through a real gateway to a fake Gemini API: what passes, when, and what the ledger has of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from sandboxd.gateway.config import GatewayLimits, GatewayTimeouts
from sandboxd.model.money import Money
from sandboxd.model.session import TurnState
from sandboxd.model.usage import NO_TOKENS, CallError, TokenCounts, UsageState
from tests.contract.usage_world import a_session, a_turn, an_identity
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.fakes.usage import FakeSession
from tests.gateway_world import CANARY, GatewayWorld, config_for, error_of, texts


@pytest.fixture
def fake() -> Iterator[FakeGemini]:
    with FakeGemini(key=CANARY) as fake:
        yield fake


@pytest.fixture
async def world(fake: FakeGemini, tmp_path: Path) -> AsyncIterator[GatewayWorld]:
    async with GatewayWorld(fake=fake, config=config_for(fake, tmp_path)).running() as world:
        yield world


def with_timeouts(world: GatewayWorld, **seconds: float) -> GatewayWorld:
    world.config = replace(world.config, timeouts=replace(GatewayTimeouts(), **seconds))
    return world


# --- what passes


async def test_a_streamed_answer_passes_whole_and_is_settled_to_the_token(world: GatewayWorld) -> None:
    status, body = await world.ask("fake:text(chunks=3)")

    [row] = world.rows
    [upstream] = await world.received()
    assert (status, "".join(texts(body))) == (200, "chunk 1 of 3. chunk 2 of 3. chunk 3 of 3. ")
    assert (row.state, row.http_status, row.finish_reason, row.error_reason) == (UsageState.SETTLED, 200, "STOP", None)
    assert row.tokens == TokenCounts(prompt=110, output=12, total=122)
    assert row.tokens.total == upstream["usage"]["totalTokenCount"]
    assert row.cost == Money(micros=63, currency="USD")  # 110 x 0.30 + 12 x 2.50 per million
    assert row.model_version == "gemini-2.5-flash"


async def test_the_first_piece_is_here_before_the_last_is_sent(world: GatewayWorld) -> None:
    async with world.request("fake:gated") as answer:
        first = await asyncio.wait_for(answer.content.readuntil(b"\r\n\r\n"), 5)
        [row] = world.rows
        state_meanwhile = row.state
        world.fake.gate.set()
        rest = await answer.read()

    assert texts(first) == ["One two "]
    assert state_meanwhile is UsageState.OPEN
    assert texts(rest) == ["three four."]


async def test_the_row_is_settled_before_the_stream_ends_for_the_cli(world: GatewayWorld) -> None:
    held = asyncio.Event()
    async with world.request("fake:gated") as answer:
        await asyncio.wait_for(answer.content.readuntil(b"\r\n\r\n"), 5)
        world.ledger.hanging = held
        world.fake.gate.set()
        last = await asyncio.wait_for(answer.content.readuntil(b"\r\n\r\n"), 5)
        reading = asyncio.create_task(answer.content.read())
        ended_early = await asyncio.wait([reading], timeout=0.1)
        state_meanwhile = world.rows[0].state
        world.ledger.hanging = None
        held.set()
        await asyncio.wait_for(reading, 5)

    assert "finishReason" in last.decode()
    assert (ended_early[0], state_meanwhile) == (set(), UsageState.OPEN)
    assert world.rows[0].state is UsageState.SETTLED


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("fake:think", TokenCounts(prompt=110, output=4, thoughts=33, total=147)),
        ("fake:cached", TokenCounts(prompt=110, cached=64, output=4, total=114)),
        ("fake:tooltokens", TokenCounts(prompt=110, output=5, tool_use=17, total=132)),
        ("fake:gzip", TokenCounts(prompt=110, output=4, total=114)),
        ("fake:empty", TokenCounts(prompt=110, total=110)),
        ("fake:blocked", TokenCounts(prompt=110, total=110)),
        ("fake:nofinish", TokenCounts(prompt=110, output=4, total=114)),
    ],
)
async def test_every_class_of_tokens_is_counted(world: GatewayWorld, prompt: str, tokens: TokenCounts) -> None:
    await world.ask(prompt)

    row = await world.settled()
    assert (row.state, row.tokens) == (UsageState.SETTLED, tokens)


async def test_a_blocked_prompt_keeps_its_reason(world: GatewayWorld) -> None:
    await world.ask("fake:blocked")

    assert world.rows[0].block_reason == "PROHIBITED_CONTENT"


async def test_an_answer_without_a_stream_is_metered_too(world: GatewayWorld) -> None:
    status, body = await world.ask("fake:say(text=hello there)", method="generateContent")

    assert (status, json.loads(body)["usageMetadata"]["totalTokenCount"]) == (200, 112)
    assert world.rows[0].tokens.total == 112


async def test_counting_tokens_has_a_row_that_costs_nothing(world: GatewayWorld) -> None:
    status, body = await world.ask("hello", method="countTokens")

    assert (status, json.loads(body)) == (200, {"totalTokens": 110})
    assert (world.rows[0].tokens, world.rows[0].cost) == (NO_TOKENS, Money(micros=0, currency="USD"))
    assert world.rows[0].reserved.tokens == 0


async def test_a_compressed_answer_is_passed_on_readable(world: GatewayWorld) -> None:
    status, body = await world.ask("fake:gzip")

    assert (status, texts(body)) == (200, ["One two ", "three four."])


async def test_a_call_is_joined_to_the_turn_of_the_hinted_session(world: GatewayWorld) -> None:
    session, turn = a_session(), a_turn()
    world.ledger.sessions[session] = FakeSession(
        sandbox=world.identity.sandbox, turn=turn, turn_state=TurnState.RUNNING
    )

    await world.ask("hello", headers={"x-sandboxd-session": session})
    await world.ask("hello", headers={"x-sandboxd-session": "ses-'; drop table"})

    assert [(row.session, row.turn) for row in world.rows] == [(session, turn), (None, None)]


async def test_a_model_without_a_price_is_flagged_and_not_free(world: GatewayWorld) -> None:
    await world.ask("hello", model="gemini-99-ultra")

    assert (world.rows[0].cost, world.rows[0].unpriced) == (None, True)
    assert "sandboxd_gateway_unpriced_calls_total 1.0" in await world.metrics()


async def test_the_reservation_is_the_bodys_size_and_the_wished_output(world: GatewayWorld) -> None:
    await world.ask("hello", config={"maxOutputTokens": 100})
    await world.ask("x" * 8_000_000, config={"maxOutputTokens": 200})
    await world.ask("hello")

    small, large, open_ended = (row.reserved for row in world.rows)
    assert (small.output_tokens, large.output_tokens, open_ended.output_tokens) == (100, 200, 8192)
    assert large.prompt_tokens == pytest.approx(2_000_000, rel=0.01)


# --- what the API refuses


@pytest.mark.parametrize(
    ("prompt", "status"),
    [("fake:429(times=-1)", 429), ("fake:500(times=-1)", 500), ("fake:503(times=-1)", 503), ("fake:quota", 429),
     ("fake:400", 400), ("fake:denied", 403), ("fake:notfound", 404), ("fake:toolong", 400)],
)  # fmt: skip
async def test_an_error_of_the_api_passes_unchanged_and_has_a_row(
    world: GatewayWorld, prompt: str, status: int
) -> None:
    found, body = await world.ask(prompt)

    assert (found, error_of(body)["code"]) == (status, status)
    row = world.rows[0]
    assert (row.state, row.http_status, row.tokens) == (UsageState.SETTLED, status, NO_TOKENS)
    assert row.error_reason is CallError.UPSTREAM_STATUS


async def test_an_error_inside_a_stream_is_noted_with_the_usage_before_it(world: GatewayWorld) -> None:
    await world.ask("fake:midstreamerror")

    row = await world.settled()
    assert (row.state, row.error_reason, row.tokens.prompt) == (UsageState.SETTLED, CallError.UPSTREAM_STATUS, 110)


async def test_a_redirect_is_not_followed(world: GatewayWorld) -> None:
    with FakeGemini() as elsewhere:
        status, body = await world.ask(f"fake:redirect(to={elsewhere.url}/v1beta/models/x:generateContent)")

        assert (status, error_of(body)["details"][0]["reason"]) == (400, "UPSTREAM_REDIRECT")
        assert elsewhere.requests == []
    assert world.rows[0].error_reason is CallError.UPSTREAM_REDIRECT


# --- what breaks


async def test_a_cli_that_goes_away_cancels_the_call_and_is_billed_what_was_seen(world: GatewayWorld) -> None:
    async with world.request("fake:hang") as answer:
        await answer.content.readuntil(b"\r\n\r\n")
        answer.close()

    row = await world.settled()
    [upstream] = await world.received()
    assert upstream["client_gone"] is True
    assert (row.state, row.error_reason) == (UsageState.ESTIMATED, CallError.CLIENT_GONE)
    assert row.tokens.total == upstream["usage"]["totalTokenCount"]


async def test_a_cli_that_goes_away_before_any_answer_is_billed_the_prompt_as_estimated(world: GatewayWorld) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(world.ask("fake:silent " + "x" * 4000), 0.3)

    row = await world.settled()
    assert (row.state, row.error_reason) == (UsageState.ESTIMATED, CallError.CLIENT_GONE)
    assert row.tokens == TokenCounts(prompt=row.reserved.prompt_tokens, total=row.reserved.prompt_tokens)
    assert row.reserved.prompt_tokens > 1000


@pytest.mark.parametrize(
    ("prompt", "error", "state"),
    [
        ("fake:truncate", CallError.UPSTREAM_CUT, UsageState.ESTIMATED),
        ("fake:malformed", CallError.UPSTREAM_MALFORMED, UsageState.SETTLED),
    ],
)
async def test_a_stream_that_breaks_counts_the_last_usage_seen(
    world: GatewayWorld, prompt: str, error: CallError, state: UsageState
) -> None:
    async with world.request(prompt) as answer:
        try:
            await answer.read()
            broken = False
        except aiohttp.ClientPayloadError:
            broken = True

    row = await world.settled()
    [upstream] = await world.received()
    assert (row.error_reason, row.state, row.tokens.total) == (error, state, upstream["usage"]["totalTokenCount"])
    assert broken is (error is CallError.UPSTREAM_CUT)


async def test_a_connection_that_is_cut_before_an_answer_is_an_error_for_the_cli(world: GatewayWorld) -> None:
    status, body = await world.ask("fake:reset")

    assert (status, error_of(body)["status"]) == (502, "UNAVAILABLE")
    assert (world.rows[0].state, world.rows[0].error_reason) == (UsageState.ESTIMATED, CallError.UPSTREAM_CUT)


async def test_an_api_that_cannot_be_reached_costs_nothing(fake: FakeGemini, tmp_path: Path) -> None:
    config = config_for(fake, tmp_path, upstream_url="http://127.0.0.1:1")
    async with GatewayWorld(fake=fake, config=config).running() as world:
        status, body = await world.ask("hello")

        assert (status, error_of(body)["details"][0]["reason"]) == (503, "UPSTREAM_UNREACHABLE")
        assert (world.rows[0].state, world.rows[0].tokens) == (UsageState.SETTLED, NO_TOKENS)


@pytest.mark.parametrize(
    ("prompt", "seconds", "status"), [("fake:silent", {"headers": 0.3}, 504), ("fake:hang", {"idle": 0.3}, 200)]
)
async def test_an_api_that_falls_silent_is_cancelled_at_the_deadline(
    fake: FakeGemini, tmp_path: Path, prompt: str, seconds: dict[str, float], status: int
) -> None:
    world = with_timeouts(GatewayWorld(fake=fake, config=config_for(fake, tmp_path)), **seconds)
    async with world.running():
        async with world.request(prompt) as answer:
            found = answer.status
            try:
                await answer.read()
            except aiohttp.ClientPayloadError:
                assert found == 200

        row = await world.settled()
        [upstream] = await world.received()
    assert (found, row.error_reason, upstream["client_gone"]) == (status, CallError.UPSTREAM_TIMEOUT, True)


async def test_a_call_that_takes_too_long_in_all_is_ended(fake: FakeGemini, tmp_path: Path) -> None:
    world = with_timeouts(GatewayWorld(fake=fake, config=config_for(fake, tmp_path)), total=0.4)
    async with world.running():
        async with world.request("fake:slow(chunks=50; delay=0.05)") as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()

        row = await world.settled()
    assert (row.state, row.error_reason) == (UsageState.ESTIMATED, CallError.UPSTREAM_TIMEOUT)
    assert row.tokens.output > 0


@pytest.mark.parametrize(
    ("prompt", "status"), [("fake:huge(mb=6)", 200), ("fake:say(text=" + "z" * 3_000_000 + ")", 400)]
)
async def test_an_answer_beyond_the_limit_is_cut_and_the_memory_of_it_is_bounded(
    fake: FakeGemini, tmp_path: Path, prompt: str, status: int
) -> None:
    limits = GatewayLimits(response_bytes=4 << 20, whole_response_bytes=2 << 20)
    method = "streamGenerateContent?alt=sse" if status == 200 else "generateContent"
    async with GatewayWorld(fake=fake, config=config_for(fake, tmp_path, limits=limits)).running() as world:
        async with world.request(prompt, method=method) as answer:
            found = answer.status
            try:
                passed = len(await answer.read())
            except aiohttp.ClientPayloadError:
                passed = -1

        row = await world.settled()
    assert (found, row.error_reason) == (status, CallError.RESPONSE_TOO_LARGE)
    assert passed < 4 << 20


async def test_an_event_too_long_to_look_into_passes_and_what_follows_is_counted(world: GatewayWorld) -> None:
    status, body = await world.ask("fake:hugeevent(mb=34)")

    row = await world.settled()
    assert (status, len(body) > 34 << 20) == (200, True)
    assert (row.tokens.total, row.error_reason) == (114, CallError.UPSTREAM_MALFORMED)


async def test_a_slow_reader_slows_the_upstream_and_is_given_up_at_the_deadline(
    fake: FakeGemini, tmp_path: Path
) -> None:
    world = with_timeouts(GatewayWorld(fake=fake, config=config_for(fake, tmp_path)), client_write=0.3)
    async with world.running(), world.request("fake:huge(mb=60)") as answer:
        row = await world.settled()
        answer.close()

    assert (row.state, row.error_reason) == (UsageState.ESTIMATED, CallError.CLIENT_GONE)


# --- many at once


async def test_fifty_calls_at_once_are_each_in_the_ledger_to_the_token(world: GatewayWorld) -> None:
    identities = [an_identity() for _ in range(5)]
    for identity in identities:
        world.ledger.incarnations[identity.incarnation] = identity
    prompts = ["fake:text(chunks=3; delay=0.02)", "fake:think", "fake:cached", "fake:429(times=-1)", "fake:empty"]

    async def ask(number: int) -> None:
        token = world.token(identities[number % 5])
        await world.ask(prompts[number % 5], headers={"authorization": f"Bearer {token}"})

    await asyncio.gather(*(ask(number) for number in range(50)))

    upstream = await world.received(50)
    assert len(world.rows) == 50
    assert sum(row.tokens.total for row in world.rows) == sum(
        request["usage"]["totalTokenCount"] for request in upstream if "usage" in request
    )


async def test_a_gateway_that_stops_lets_calls_end_and_settles_all(fake: FakeGemini, tmp_path: Path) -> None:
    world = with_timeouts(GatewayWorld(fake=fake, config=config_for(fake, tmp_path)), shutdown=0.5)
    async with world.running():
        ending = asyncio.create_task(world.ask("fake:slow(chunks=3; delay=0.1)"))
        hanging = asyncio.create_task(world.ask("fake:hang"))
        await eventually(lambda: len(world.rows) == 2 and world.rows[0].first_byte_time is not None)
        await eventually(lambda: world.ledger.progress_count >= 2)

        await world.gateway.__aexit__(None, None, None)
        ended = await asyncio.gather(ending, hanging, return_exceptions=True)

    assert not isinstance(ended[0], BaseException)
    assert isinstance(ended[1], aiohttp.ClientError)
    states = {(row.state, row.error_reason) for row in world.rows}
    assert states == {(UsageState.SETTLED, None), (UsageState.ESTIMATED, CallError.GATEWAY_STOPPED)}


async def test_progress_of_a_long_stream_is_persisted(world: GatewayWorld) -> None:
    async with world.request("fake:hang") as answer:
        await answer.content.readuntil(b"\r\n\r\n")

        await eventually(lambda: world.rows[0].tokens.total)

        row = world.rows[0]
        assert (row.state, row.tokens.prompt) == (UsageState.OPEN, 110)
