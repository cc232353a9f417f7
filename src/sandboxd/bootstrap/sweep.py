"""The role `sweep`: one pass over all sandboxes, from outside. For a CronJob, so that a dead loop costs nothing.

It needs what `serve` needs, and takes part as one more replica for the time of the pass: it holds a lock of its own,
asks owners of conversations to end their CLIs, and owns nothing itself but what nobody owns. It listens nowhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import structlog
import typer

from sandboxd.bootstrap.rooms import Rooms, build_rooms
from sandboxd.bootstrap.schema import wait_for_schema
from sandboxd.manager.sweep import SweepReport
from sandboxd.settings import Settings, SettingsError

SOME_FAILED: Final = 1
"""Exit code where looks or steps failed; everything else was done."""
WAIT_SECONDS: Final = 20.0
"""How long the database may be away at the start, where nothing else is said."""
MAX_PLANS: Final = 1000

log = structlog.get_logger("sandboxd.bootstrap")


async def sweep(settings: Settings, *, dry_run: bool = False, wait_seconds: float = WAIT_SECONDS) -> None:
    """Pass once, and print a summary as one JSON object.

    Raises:
        SettingsError: Something that this role needs is missing.
        UnavailableError: The database cannot be used.
        typer.Exit: With `SOME_FAILED`.
    """
    if settings.database_url is None:
        raise SettingsError("The settings cannot be used:\n  SANDBOXD_DATABASE_URL: sweep needs a PostgreSQL")
    url = settings.database_url.get_secret_value()
    rooms = build_rooms(settings, url)
    try:
        await wait_for_schema(url, patience=timedelta(seconds=wait_seconds))
        report = await _pass(rooms, dry_run=dry_run, grace=settings.drain_grace)
    finally:
        rooms.commit.close()
        if rooms.kept is not None:
            await rooms.kept.close()
        await rooms.database.close()
        await asyncio.to_thread(rooms.seen.send_traces)
    typer.echo(json.dumps(summary(report, dry_run=dry_run), sort_keys=True))
    if report.failed:
        raise typer.Exit(SOME_FAILED)


async def _pass(rooms: Rooms, *, dry_run: bool, grace: timedelta) -> SweepReport:
    rooms.custody.adopt_no_more()
    running = asyncio.create_task(_background(rooms), name="rooms")
    sweeping = asyncio.create_task(_once(rooms, dry_run=dry_run), name="sweep")
    try:
        await asyncio.wait({running, sweeping}, return_when=asyncio.FIRST_COMPLETED)
        if not sweeping.done():
            await running  # raises what ended it
        report = await sweeping
        # Steps that take long go on: give them the grace, then leave them to whoever recovers.
        await rooms.manager.drain(grace=grace)
        await rooms.hub.drain()
        return report
    finally:
        await rooms.launcher.close()
        await rooms.audit.close(timeout=grace)
        for task in (running, sweeping):
            task.cancel()
        await asyncio.gather(running, sweeping, return_exceptions=True)


async def _once(rooms: Rooms, *, dry_run: bool) -> SweepReport:
    await rooms.presence.wait_held()
    return await rooms.manager.sweep.run(everything=True, dry_run=dry_run)


async def _background(rooms: Rooms) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(rooms.presence.run(), name="presence")
        await rooms.presence.wait_held()
        tasks.create_task(rooms.audit.run(), name="audit")
        tasks.create_task(rooms.commit.run(), name="group-commit")
        tasks.create_task(rooms.custody.run(), name="custody")
        tasks.create_task(rooms.manager.run_for_a_sweep(), name="manager")


def summary(report: SweepReport, *, dry_run: bool) -> Mapping[str, Any]:
    """Write a report as JSON. Any: JSON."""
    steps: dict[str, dict[str, int]] = {}
    for (step, outcome), number in report.steps.items():
        steps.setdefault(step.value.lower(), {})[outcome] = number
    written: dict[str, Any] = {
        "dry_run": dry_run,
        "looked": report.looked,
        "announced": report.announced,
        "called_off": report.called_off,
        "steps": steps,
        "failed": report.failed,
        "hindered": report.hindered,
        "seconds": round(report.seconds, 3),
    }
    if dry_run:
        written["plans"] = [
            {
                "sandbox": plan.sandbox,
                "client": plan.client,
                "state": plan.state.value,
                "step": None if plan.step is None else plan.step.value,
                "time": None if plan.time is None else plan.time.isoformat(),
                "now": plan.act.value,
                "hindrance": plan.hindrance,
            }
            for plan in report.plans[:MAX_PLANS]
        ]
    return written
