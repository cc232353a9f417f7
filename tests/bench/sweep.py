"""`python -m tests.bench.sweep`: what the sweep costs the database with many sandboxes.

Sandboxes are rows in a real PostgreSQL; those that are looked at are HIBERNATED, STOPPED or PAUSED, so that no agent is
asked and all of the time is the database's and our own. Three passes: one that looks at everything, one that finds
nothing due, and one in which everything is due at once.
"""

import argparse
import asyncio
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sandboxd.manager.lifecycle_ports import Noted, Root
from sandboxd.manager.sweep import PAGE
from sandboxd.manager.verdicts import judge
from sandboxd.model.lifecycle import LifecyclePolicy
from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork

FILL: Final = """
    INSERT INTO sandboxes (id, client, freelancer, display_name, labels, tier, model, approval_mode, state,
        state_reason, incarnation, incarnations, create_time, update_time, last_use_time, terminate_time, version)
    SELECT 'sbx-' || lpad(n::text, 8, '0'), 'client-' || n % 100, 'ada', '', '{}', 'basic', '', 'default',
        (ARRAY['HIBERNATED', 'STOPPED', 'PAUSED'])[1 + n % 3], '', NULL, 1, now(), now(), now(), NULL, 1
    FROM generate_series(1, $1::int) AS n
"""
EXPLAIN: Final = """
    EXPLAIN (ANALYZE, BUFFERS) SELECT s.id FROM sandboxes AS s JOIN clients AS c ON c.id = s.client
    LEFT JOIN sandbox_looks AS l ON l.sandbox = s.id
    WHERE s.state IN ('ACTIVE', 'HIBERNATED', 'STOPPED', 'PAUSED') AND s.look_time <= now()
    ORDER BY s.look_time, s.id LIMIT 500
"""


async def fill(database: Database, number: int) -> None:
    """Make the rows."""
    async with database.raw() as connection:
        await connection.execute(
            "INSERT INTO clients (id, create_time) SELECT 'client-' || n, now() FROM generate_series(0, 99) AS n"
        )
        await connection.execute(
            "INSERT INTO freelancers (client, id, create_time) SELECT id, 'ada', now() FROM clients"
        )
        await connection.execute(FILL, number)
        await connection.execute("ANALYZE")


async def one_pass(database: Database, *, everything: bool) -> tuple[int, float, float]:
    """Look and note as the sweep does; answers how many were looked at, the seconds, and those of our processor."""
    units, began, looked, after = PostgresUnitsOfWork(database), time.monotonic(), 0, None
    cpu = time.process_time()
    policy = LifecyclePolicy()
    while True:
        async with units.begin() as work:
            now = datetime.now(UTC)
            page = await (
                work.looks.every(limit=PAGE, after=after) if everything else work.looks.due(at=now, limit=PAGE)
            )
        if not page:
            return looked, time.monotonic() - began, time.process_time() - cpu
        after, looked = page[-1].sandbox.id, looked + len(page)
        noted = []
        for one in page:
            found = judge(one, policy, Root.CLEAN, judged_by_two=True, at=now)
            noted.append(
                Noted(
                    sandbox=one.sandbox.id,
                    version=one.sandbox.version,
                    look=found.look,
                    look_time=found.look_time,
                    changed=found.look != one.look,
                )
            )
        async with units.begin() as work:
            await work.looks.note(noted)
            await work.commit()


async def run(number: int) -> None:
    """Measure and print a table."""
    with tempfile.TemporaryDirectory(prefix="sandboxd-bench-") as folder:
        embedded = EmbeddedPostgres(Path(folder), durable=True)
        await embedded.start()
        url = embedded.url("postgres")
        await migrations.upgrade(url)
        database = Database(make_engine(DatabaseSettings(url=url)))
        try:
            await fill(database, number)
            everything = await one_pass(database, everything=True)
            nothing = await one_pass(database, everything=False)
            async with database.raw() as connection:
                await connection.execute("UPDATE sandboxes SET look_time = now() - interval '1 second'")
                plan = [row[0] for row in await connection.fetch(EXPLAIN)]
            due = await one_pass(database, everything=False)
        finally:
            await database.close()
            await embedded.stop()
        print("| Pass | Looked at | Seconds | our own processor | the database |\n| --- | ---: | ---: | ---: | ---: |")
        for what, (looked, seconds, cpu) in (("everything", everything), ("nothing due", nothing), ("all due", due)):
            print(f"| {what} | {looked:,} | {seconds:.3f} | {cpu:.3f} | {seconds - cpu:.3f} |")
        print("\nOne page of what is due:\n" + "\n".join(plan))


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sandboxes", type=int, default=10_000)
    asyncio.run(run(parser.parse_args().sandboxes))


if __name__ == "__main__":
    main()
