"""What the ledger costs a model call: `python -m tests.bench.ledger`. Without a budget and with six, in the same run.

A call is opened before it goes to the model API and settled before its end goes to the CLI; both are commits on a
durable PostgreSQL. Prints a table.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

from sandboxd.bootstrap.migrate import migrate_database
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.monitor.ports import OpenedCall
from sandboxd.persistence.embedded import APPLICATION, EmbeddedPostgres
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from tests.bench.figures import percentile
from tests.contract.postgres_worlds import PostgresLedgerWorld
from tests.contract.usage_world import a_call, a_settlement, an_identity

_BUDGET = """
    INSERT INTO budgets (id, client, freelancer, sandbox, period, unit, limit_amount, thresholds, counted_from,
        create_time, update_time)
    VALUES ($1, $2, $3, $4, $5, 'TOKENS', 1000000000000, '{80,95}', current_date, now(), now())
"""


async def main() -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        postgres = EmbeddedPostgres(Path(folder))
        await postgres.start()
        try:
            await migrate_database(postgres.url(), role=APPLICATION)
            database = Database(make_engine(DatabaseSettings(url=postgres.url(user=APPLICATION), pool_size=20)))
            await _measure(PostgresLedgerWorld(database=database), database)
            await database.close()
        finally:
            await postgres.stop()


async def _measure(world: PostgresLedgerWorld, database: Database) -> None:
    print("| Calls at once | | Open P50 (ms) | P99 | Settle P50 (ms) | P99 | calls a second |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for crowd, rounds in ((1, 300), (20, 40), (100, 10)):
        for name, budgets in (("no budget", False), ("six budgets each, of one client", True)):
            first = an_identity()
            people = [an_identity(client=first.client) for _ in range(crowd)]
            for identity in people:
                await world.given_incarnation(identity)
            if budgets:
                await _set_budgets(database, people)
            opening: list[float] = []
            settling: list[float] = []
            began = time.perf_counter()
            await asyncio.gather(*(_calls(world, one, rounds, opening, settling) for one in people))
            seconds = time.perf_counter() - began
            figures = [percentile(times, share) for times in (opening, settling) for share in (0.5, 0.99)]
            shown = " | ".join(f"{figure:.1f}" for figure in figures)
            print(f"| {crowd} | {name} | {shown} | {len(opening) / seconds:,.0f} |")


async def _set_budgets(database: Database, people: list[SandboxIdentity]) -> None:
    targets = {(one.client, *level) for one in people for level in (("", ""), (one.freelancer, ""), ("", one.sandbox))}
    async with database.raw() as connection:
        for number, ((client, freelancer, sandbox), period) in enumerate(product(sorted(targets), ("DAY", "MONTH"))):
            await connection.execute(_BUDGET, f"bdg-{client}-{number}", client, freelancer, sandbox, period)


async def _calls(
    world: PostgresLedgerWorld, identity: SandboxIdentity, rounds: int, opening: list[float], settling: list[float]
) -> None:
    for _ in range(rounds):
        call = a_call(identity, start_time=datetime.now(UTC))
        began = time.perf_counter()
        opened = await world.ledger.open_call(call)
        opening.append((time.perf_counter() - began) * 1000)
        assert isinstance(opened, OpenedCall), opened
        began = time.perf_counter()
        await world.ledger.settle_call(call.id, a_settlement())
        settling.append((time.perf_counter() - began) * 1000)


if __name__ == "__main__":
    asyncio.run(main())
