"""With the real CLI: the service or PostgreSQL is killed while a budget is reserved, and the budget is exact after."""

from __future__ import annotations

import os
import signal

import pytest

from sandboxd.ctl.client import Client
from sandboxd.persistence.embedded import EmbeddedPostgres
from sandboxd.v1 import budget_pb2, stream_pb2
from tests.e2e.conftest import StackMaker
from tests.e2e.stack import Stack, Transcript
from tests.e2e.test_crashes import ANSWER, SLOW
from tests.eventually import eventually

pytestmark = pytest.mark.timeout(300)


async def given_budget(client: Client, sandbox: str) -> None:
    budget = budget_pb2.Budget(sandbox=sandbox, period=budget_pb2.BUDGET_PERIOD_MONTH, tokens=1_000_000)
    await client.accounting.set_budget(budget)


async def use_of(client: Client, sandbox: str) -> tuple[int, int]:
    """What is reserved of the sandbox's one budget, and what is spent."""
    (budget,) = [one async for one in client.accounting.budgets(sandbox=sandbox)]
    return budget.use.reserved, budget.use.spent


async def reserved(client: Client, sandbox: str) -> bool:
    return (await use_of(client, sandbox))[0] > 0


async def exact_in_the_end(stack: Stack, client: Client, sandbox: str) -> None:
    """Nothing is reserved any more, and what is spent is what the API itself has counted."""
    rows = await stack.ledger(client, sandbox)
    upstream = [request["usage"]["totalTokenCount"] for request in stack.model.requests if "usage" in request]

    async def settled() -> tuple[int, int]:
        use = await use_of(client, sandbox)
        assert use[0] == 0
        return use

    assert await eventually(settled) == (0, sum(upstream))
    assert sorted(row.tokens.total for row in rows) == sorted(upstream)


async def test_the_service_is_killed_while_a_budget_is_reserved(postgres_url: str, make_stack: StackMaker) -> None:
    async with make_stack(postgres_url) as stack, stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        await given_budget(client, sandbox.name)
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            stream.prompt(SLOW)
            await seen.until("text")
            assert await reserved(client, sandbox.name)

            await stack.restart("serve")
            completed = (await seen.until("turn_completed")).turn_completed
            again = await seen.turn("fake:say(text=next)")

        assert completed.stop_reason == again.stop_reason == stream_pb2.STOP_REASON_END_TURN
        assert seen.text == ANSWER + "next"
        await exact_in_the_end(stack, client, sandbox.name)


async def test_postgresql_is_killed_while_a_budget_is_reserved(
    own_postgres: EmbeddedPostgres, make_stack: StackMaker
) -> None:
    async with make_stack(own_postgres.url()) as stack, stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        await given_budget(client, sandbox.name)
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            stream.prompt(SLOW)
            await seen.until("text")
            assert await reserved(client, sandbox.name)
            server = own_postgres.pid()
            assert server is not None

            os.kill(server, signal.SIGKILL)
            await eventually(lambda: stack.model.requests and "usage" in stack.model.requests[-1])
            await own_postgres.start()
            completed = (await seen.until("turn_completed")).turn_completed
            again = await seen.turn("fake:say(text=next)")

        assert completed.stop_reason == again.stop_reason == stream_pb2.STOP_REASON_END_TURN
        assert seen.text == ANSWER + "next"
        await exact_in_the_end(stack, client, sandbox.name)
