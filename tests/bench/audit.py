"""What the audit costs a mutation: `python -m tests.bench.audit`. With it, and without, in the same run.

A mutation is one row of another table and its commit, which is what the cheapest RPC does. Prints a table.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry

from sandboxd.bootstrap.migrate import migrate_database
from sandboxd.bootstrap.sources import RandomIds, SystemClock
from sandboxd.model.ids import ClientId
from sandboxd.monitor.audit_ports import OK, Deed
from sandboxd.monitor.audit_trail import GroupedAuditTrail
from sandboxd.monitor.audit_writer import AuditMetrics
from sandboxd.persistence.audit_store import PostgresAuditStore
from sandboxd.persistence.embedded import APPLICATION, EmbeddedPostgres
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.presence import ReplicaPresence
from tests.bench.figures import percentile

WAIT = timedelta(seconds=60)
DEED = Deed(
    client=ClientId("bench"),
    role="client_admin",
    action="SandboxService/Update",
    actor="boss",
    peer="127.0.0.1",
    target="sandboxes/sbx-bench",
    request_id="request-1",
    texts={"details": '{"sandbox":{"display_name":"bench"}}'},
)


async def main() -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        postgres = EmbeddedPostgres(Path(folder))
        await postgres.start()
        try:
            await migrate_database(postgres.url(), role=APPLICATION)
            await _measure(postgres)
        finally:
            await postgres.stop()


async def _measure(postgres: EmbeddedPostgres) -> None:
    url = postgres.url(user=APPLICATION)
    database = Database(make_engine(DatabaseSettings(url=url, pool_size=20)))
    clock, registry = SystemClock(), CollectorRegistry()
    metrics = AuditMetrics(registry)
    trail = GroupedAuditTrail(
        PostgresAuditStore(database), clock=clock, ids=RandomIds(clock), replica="bench", metrics=metrics
    )
    presence = ReplicaPresence(DatabaseSettings(url=url), replica="bench")
    living = asyncio.create_task(presence.run())
    await presence.wait_held()
    running = asyncio.create_task(trail.run())

    async def change() -> None:
        async with database.raw() as connection:
            await connection.execute("INSERT INTO gateways VALUES ($1, now())", RandomIds(clock).new("use"))

    async def audited() -> None:
        intent = await trail.intend(DEED, timeout=WAIT)
        await change()
        trail.conclude(intent, OK)

    async def intent_only() -> None:
        trail.conclude(await trail.intend(DEED, timeout=WAIT), OK)

    print("| Mutations at once | | P50 (ms) | P99 (ms) | a second | commits of the audit |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for crowd, rounds in ((1, 400), (20, 60), (200, 10)):
        for name, work in (("without the audit", change), ("with it", audited), ("its intent alone", intent_only)):
            before = _groups(registry)
            times, seconds = await _crowd(work, crowd=crowd, rounds=rounds)
            await trail.settle(timeout=WAIT)
            print(
                f"| {crowd} | {name} | {percentile(times, 0.5):.1f} | {percentile(times, 0.99):.1f} "
                f"| {len(times) / seconds:,.0f} | {_groups(registry) - before:,.0f} for {len(times):,} |"
            )
    for task in (running, living):
        task.cancel()
    await asyncio.gather(running, living, return_exceptions=True)
    await database.close()


async def _crowd(work: Callable[[], Awaitable[None]], *, crowd: int, rounds: int) -> tuple[list[float], float]:
    times: list[float] = []

    async def one() -> None:
        for _ in range(rounds):
            began = time.perf_counter()
            await work()
            times.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(crowd)))
    return times, time.perf_counter() - began


def _groups(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("sandboxd_audit_groups_total") or 0.0


if __name__ == "__main__":
    asyncio.run(main())
