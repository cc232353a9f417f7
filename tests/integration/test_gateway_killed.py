"""A gateway process is SIGKILLed in the middle of streams, on a real PostgreSQL: every call ends up settled, once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from sandboxd.gateway.key_files import ensure_token_keys
from sandboxd.gateway.tokens import SandboxTokenSigner
from sandboxd.manager.budget_ports import BudgetFilter
from sandboxd.model.budget import TOKENS, BudgetId, BudgetPeriod, BudgetTarget
from sandboxd.model.failpoints import POINTS, VARIABLE
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.model.usage import CallError, UsageEvent, UsageState
from sandboxd.monitor.list_prices import list_prices
from sandboxd.monitor.ports import UsageFilter
from sandboxd.persistence.budgets import PostgresBudgetRepository
from sandboxd.persistence.engine import Database
from tests.contract.postgres_worlds import PostgresLedgerWorld
from tests.contract.usage_world import an_id, an_identity
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.gateway_world import CANARY, MODEL, RealClock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake() -> Iterator[FakeGemini]:
    with FakeGemini(key=CANARY) as fake:
        yield fake


@asynccontextmanager
async def gateway(settings: dict[str, str], *, failpoints: str = "") -> AsyncIterator[tuple[Process, str]]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", VARIABLE: failpoints}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.gateway_child",
        json.dumps(settings),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(b"{"):
                break
        yield process, json.loads(line)["url"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_calls_of_a_killed_gateway_are_settled_by_the_next_and_the_rest_is_exact(
    fake: FakeGemini, database: Database, postgres_url: str, tmp_path: Path
) -> None:
    world = PostgresLedgerWorld(database=database)
    identity = an_identity()
    await world.given_incarnation(identity)
    await world.prices.add(list_prices())
    key, key_id = ensure_token_keys(private_file=tmp_path / "key.pem", public_directory=tmp_path / "keys")
    token = SandboxTokenSigner(key=key, key_id=key_id, clock=RealClock()).mint(identity).text
    settings = {
        "database": postgres_url,
        "upstream": fake.url,
        "spool": str(tmp_path / "spool"),
        "keys": str(tmp_path / "keys"),
    }

    async def rows() -> Sequence[UsageEvent]:
        return (await world.ledger.list_events(UsageFilter(sandbox=identity.sandbox), page_size=100)).events

    async def ask(http: aiohttp.ClientSession, url: str, prompt: str) -> None:
        body = {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
        async with http.post(
            f"{url}/v1beta/models/{MODEL}:streamGenerateContent?alt=sse",
            json=body,
            headers={"authorization": f"Bearer {token}"},
        ) as answer:
            await answer.read()

    async def progressed() -> bool:
        return sum(row.tokens.total > 0 for row in await rows() if row.state is UsageState.OPEN) == 3

    async def all_ended() -> bool:
        return all(row.state is not UsageState.OPEN for row in await rows())

    async with aiohttp.ClientSession() as http:
        async with gateway(settings) as (process, url):
            await asyncio.gather(*(ask(http, url, "fake:think") for _ in range(5)))
            hanging = [asyncio.create_task(ask(http, url, "fake:hang")) for _ in range(3)]
            await eventually(progressed)
            os.kill(process.pid, signal.SIGKILL)
            broken = await asyncio.gather(*hanging, return_exceptions=True)
        async with gateway(settings) as (_, url):
            await ask(http, url, "fake:cached")
            await eventually(all_ended, within=10)

    ended = await rows()
    settled = [row for row in ended if row.state is UsageState.SETTLED]
    lost = [row for row in ended if row.error_reason is CallError.GATEWAY_LOST]
    upstream = [request["usage"]["totalTokenCount"] for request in fake.requests if not request.get("client_gone")]
    assert all(isinstance(error, aiohttp.ClientError) for error in broken)
    assert (len(ended), len(settled), len(lost)) == (9, 6, 3)
    assert sorted(row.tokens.total for row in settled) == sorted(upstream)
    assert all(row.state is UsageState.ESTIMATED and row.tokens.output == 8192 for row in lost)
    assert all(row.cost is not None for row in ended)


async def test_gateways_that_are_killed_at_steps_of_a_call_leave_rows_that_the_next_one_ends(
    fake: FakeGemini, database: Database, postgres_url: str, tmp_path: Path
) -> None:
    world = PostgresLedgerWorld(database=database)
    await world.prices.add(list_prices())
    key, key_id = ensure_token_keys(private_file=tmp_path / "key.pem", public_directory=tmp_path / "keys")
    settings = {"database": postgres_url, "upstream": fake.url, "keys": str(tmp_path / "keys")}
    places = {name: an_identity() for name in POINTS if name.startswith("gateway.")}
    target = f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"

    async def given_budgets(identity: SandboxIdentity) -> None:
        async with database.begin() as connection:
            budgets = PostgresBudgetRepository(connection)
            for unit in (TOKENS, "USD"):
                target = BudgetTarget(client=identity.client, period=BudgetPeriod.MONTH, unit=unit)
                await budgets.put(
                    target, limit=10**9, thresholds=(80,), new=BudgetId(an_id("bdg")), at=RealClock().now()
                )

    async def budgets_of(identity: SandboxIdentity) -> tuple[tuple[int, int], dict[str, tuple[int, int]]]:
        """What a recount found, and what is reserved and spent by unit."""
        async with database.begin() as connection:
            budgets, now = PostgresBudgetRepository(connection), RealClock().now()
            recounted = await budgets.recount(identity.client, at=now)
            page = await budgets.list(BudgetFilter(client=identity.client), at=now, page_size=10, page_token="")
        return recounted, {one.budget.target.unit: (one.reserved, one.spent) for one in page.items}

    async def die_at(place: str, identity: SandboxIdentity) -> None:
        await world.given_incarnation(identity)
        await given_budgets(identity)
        token = SandboxTokenSigner(key=key, key_id=key_id, clock=RealClock()).mint(identity).text
        body = {"contents": [{"role": "user", "parts": [{"text": f"{place} fake:think"}]}]}
        async with (
            aiohttp.ClientSession(headers={"authorization": f"Bearer {token}"}) as http,
            gateway({**settings, "spool": str(tmp_path / place)}, failpoints=f"{place}=exit9") as (process, url),
        ):
            with pytest.raises(aiohttp.ClientError):
                async with http.post(url + target, json=body) as answer:
                    await answer.read()
            assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL

    async def ended() -> dict[str, UsageEvent]:
        found = {}
        for place, identity in places.items():
            (row,) = (await world.ledger.list_events(UsageFilter(sandbox=identity.sandbox), page_size=100)).events
            assert row.state is not UsageState.OPEN
            found[place] = row
        return found

    await asyncio.gather(*(die_at(place, identity) for place, identity in places.items()))
    async with gateway({**settings, "spool": str(tmp_path / "spool")}):
        rows = await eventually(ended, within=30)

    sent = Counter(request["body"]["contents"][0]["parts"][0]["text"].split(" ")[0] for request in fake.requests)
    assert sent == {"gateway.mid_stream": 1, "gateway.before_settle": 1, "gateway.after_settle": 1}
    for place, row in rows.items():
        assert row.cost is not None
        counted = {TOKENS: (0, row.tokens.total), "USD": (0, row.cost.micros)}
        assert (place, await budgets_of(places[place])) == (place, ((2, 0), counted))
    settled = rows.pop("gateway.after_settle")
    assert (settled.state, settled.error_reason) == (UsageState.SETTLED, None)
    assert settled.tokens.total == fake.requests[0]["usage"]["totalTokenCount"]
    for place, row in rows.items():
        assert (place, row.state, row.error_reason) == (place, UsageState.ESTIMATED, CallError.GATEWAY_LOST)
        assert row.tokens.total >= row.reserved.tokens, "unknown is not nothing"


async def test_callers_that_hang_up_leave_their_budgets_exact(
    fake: FakeGemini, database: Database, postgres_url: str, tmp_path: Path
) -> None:
    """499: calls of which nobody waits for the end any more, before the first byte and after it."""
    world = PostgresLedgerWorld(database=database)
    identity = an_identity()
    await world.given_incarnation(identity)
    await world.prices.add(list_prices())
    key, key_id = ensure_token_keys(private_file=tmp_path / "key.pem", public_directory=tmp_path / "keys")
    token = SandboxTokenSigner(key=key, key_id=key_id, clock=RealClock()).mint(identity).text
    settings = {
        "database": postgres_url,
        "upstream": fake.url,
        "spool": str(tmp_path / "spool"),
        "keys": str(tmp_path / "keys"),
    }
    async with database.begin() as connection:
        budgets, now = PostgresBudgetRepository(connection), RealClock().now()
        for unit in (TOKENS, "USD"):
            target = BudgetTarget(client=identity.client, period=BudgetPeriod.MONTH, unit=unit)
            await budgets.put(target, limit=10**9, thresholds=(80,), new=BudgetId(an_id("bdg")), at=now)

    async def call(http: aiohttp.ClientSession, url: str, prompt: str, *, hang_up: bool) -> None:
        body = {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
        target = f"{url}/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
        async with http.post(target, json=body, headers={"authorization": f"Bearer {token}"}) as answer:
            await (answer.content.readany() if hang_up else answer.read())

    async def rows() -> Sequence[UsageEvent]:
        found = (await world.ledger.list_events(UsageFilter(sandbox=identity.sandbox), page_size=100)).events
        assert len(found) == 11
        return found

    async def opened() -> bool:
        return len(await rows()) == 11

    async def ended() -> Sequence[UsageEvent]:
        found = await rows()
        assert all(row.state is not UsageState.OPEN for row in found)
        return found

    async with gateway(settings) as (_, url), aiohttp.ClientSession() as http:
        waiting = [asyncio.create_task(call(http, url, "fake:silent", hang_up=True)) for _ in range(3)]
        await asyncio.gather(
            *(call(http, url, "fake:think", hang_up=False) for _ in range(4)),
            *(call(http, url, "fake:hang", hang_up=True) for _ in range(4)),
        )
        await eventually(opened)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        found = await eventually(ended, within=20)

    counted = sorted(request["usage"]["totalTokenCount"] for request in fake.requests if "usage" in request)
    seen = sorted(row.tokens.total for row in found if row.first_byte_time is not None)
    gone = [row for row in found if row.error_reason is CallError.CLIENT_GONE]
    assert len(gone) == 7
    assert all(row.state is UsageState.ESTIMATED for row in gone)
    assert (seen, len(counted)) == (counted, 8), "to the token what the API had said when the caller left"
    assert all(row.tokens.total > 0 for row in found), "unknown is not nothing"
    async with database.begin() as connection:
        budgets, now = PostgresBudgetRepository(connection), RealClock().now()
        recounted = await budgets.recount(identity.client, at=now)
        page = await budgets.list(BudgetFilter(client=identity.client), at=now, page_size=10, page_token="")
    assert recounted == (2, 0), "no sum was wrong"
    assert {one.budget.target.unit: (one.reserved, one.spent) for one in page.items} == {
        TOKENS: (0, sum(row.tokens.total for row in found)),
        "USD": (0, sum(row.cost.micros for row in found if row.cost is not None)),
    }
