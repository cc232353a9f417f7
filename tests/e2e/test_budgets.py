"""With the real CLI: what is shown of a turn is what is billed, and a spent budget ends the turn at once."""

from __future__ import annotations

import asyncio
import re

import aiohttp
import pytest

from sandboxd.ctl.client import Client, usage_filter
from sandboxd.v1 import budget_pb2, stream_pb2, usage_pb2
from tests.e2e.stack import Stack, Transcript
from tests.eventually import eventually

pytestmark = pytest.mark.timeout(300)

CLASSES = ("prompt", "cached", "output", "thoughts", "tool_use", "total")


async def watch(client: Client, sandbox: str, news: list[usage_pb2.WatchUsageResponse]) -> None:
    async for one in client.watch_usage(usage_filter(sandbox=sandbox)):
        news.append(one)  # noqa: PERF401  it is read while it grows


async def refusals(stack: Stack) -> int:
    """How often the gateway has refused a call for a budget."""
    address = f"http://127.0.0.1:{stack.ports['gateway_web']}/metrics"
    async with aiohttp.ClientSession() as session, session.get(address) as answer:
        found = re.search(r'refusals_total\{[^}]*reason="BUDGET_SPENT"[^}]*\} (\d+)', await answer.text())
    return int(found[1]) if found else 0


def tokens(counts: usage_pb2.TokenCounts) -> tuple[int, ...]:
    return tuple(getattr(counts, name) for name in CLASSES)


async def test_what_is_shown_is_what_is_billed_and_a_spent_budget_ends_the_turn_without_a_retry(stack: Stack) -> None:
    news: list[usage_pb2.WatchUsageResponse] = []
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        wanted = usage_filter(sandbox=sandbox.name)
        limit = budget_pb2.Budget(
            sandbox=sandbox.name, period=budget_pb2.BUDGET_PERIOD_MONTH, tokens=1_000_000, warn_percents=[1]
        )
        await client.accounting.set_budget(limit)
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            watching = asyncio.create_task(watch(client, sandbox.name, news))
            await eventually(lambda: news, what="the watch's first totals")
            turn = await seen.turn("fake:think")
            summary = await client.usage_summary(wanted)
            by_class = await client.usage_summary(wanted, by=["class"])
            rows = await stack.ledger(client, sandbox.name)

            def watched() -> usage_pb2.UsageSum:
                (*_, last) = [one.totals for one in news if one.HasField("totals")]
                assert last.tokens.total == turn.total_tokens
                return last

            totals = await eventually(watched)
            limit.tokens = 1
            spent = (await client.accounting.set_budget(limit)).use.spent
            requests = len(stack.model.requests)
            refused = await seen.turn("fake:say(text=never)")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        after = await stack.ledger(client, sandbox.name)

    listed = tuple(sum(tokens(row.tokens)[place] for row in rows) for place in range(len(CLASSES)))
    shown = tuple(getattr(turn, f"{name}_tokens") for name in CLASSES)
    events = {one.event.id: tokens(one.event.tokens) for one in news if one.HasField("event")}
    assert turn.usage_complete
    assert turn.total_tokens > 0
    assert shown == listed == tokens(summary.total.tokens) == tokens(totals.tokens)
    assert events == {row.id: tokens(row.tokens) for row in rows}
    assert turn.cost_micros == summary.total.costs[0].micros == totals.costs[0].micros
    assert sum(one.tokens.total for one in by_class.sums) == turn.total_tokens == spent

    errors = [event.error for event in seen.events if event.HasField("error")]
    notices = [event.notice for event in seen.events if event.HasField("notice")]
    assert refused.stop_reason == stream_pb2.STOP_REASON_ERROR
    assert [(error.reason, error.http_status, error.retryable) for error in errors] == [("BUDGET_SPENT", 403, False)]
    assert "The sandbox's budget for this month is spent" in errors[0].message
    assert [notice.code for notice in notices if notice.code.startswith("BUDGET")] == ["BUDGET_SPENT"]
    assert (refused.calls, len(after)) == (0, len(rows))
    assert len(stack.model.requests) == requests
    assert await refusals(stack) == 1
