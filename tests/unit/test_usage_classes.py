"""Usage split by class of tokens."""

from __future__ import annotations

from sandboxd.model.usage import TokenCounts
from sandboxd.monitor.classes import summarise_usage
from sandboxd.monitor.ports import UsageDimension, UsageFilter
from tests.contract.usage_world import FakeLedgerWorld, a_call, a_settlement, an_identity

BY = [UsageDimension.SANDBOX, UsageDimension.CLASS, UsageDimension.MODEL]


async def test_the_classes_of_a_sum_add_up_to_it_and_have_no_cost() -> None:
    world, identity = FakeLedgerWorld(), an_identity()
    await world.given_incarnation(identity)
    for tokens in (
        TokenCounts(prompt=100, cached=60, output=5, thoughts=7, total=112),
        TokenCounts(prompt=10, output=1, tool_use=4, total=15),
    ):
        call = a_call(identity)
        await world.ledger.open_call(call)
        await world.ledger.settle_call(call.id, a_settlement(tokens=tokens))

    summary = await summarise_usage(world.ledger, UsageFilter(client=identity.client), by=BY)

    found = {row.key: row.tokens for row in summary.rows}
    sandbox, model = identity.sandbox, "gemini-2.5-flash"
    assert found == {
        (sandbox, "prompt", model): TokenCounts(prompt=50, total=50),
        (sandbox, "cached", model): TokenCounts(cached=60, total=60),
        (sandbox, "output", model): TokenCounts(output=6, total=6),
        (sandbox, "thoughts", model): TokenCounts(thoughts=7, total=7),
        (sandbox, "tool_use", model): TokenCounts(tool_use=4, total=4),
    }
    assert sum(tokens.total for tokens in found.values()) == summary.total.tokens.total == 127
    assert all(row.costs == () for row in summary.rows)
    assert len(summary.total.costs) == 1
