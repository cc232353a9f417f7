"""`sandboxctl usage`: the ledger, summed up or call by call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rich.text import Text

from sandboxd.ctl.client import usage_filter
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.names import find_sandbox, find_session
from sandboxd.ctl.shell import Shell, UsageError
from sandboxd.ctl.tables import event_table, sum_table
from sandboxd.ctl.tables_accounting import news_line, resource_table
from sandboxd.v1 import usage_pb2

_SPAN = re.compile(r"(\d{1,6})\s*(m|h|d|w)")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageOptions:
    """Which usage, and how to add it up."""

    by: Sequence[str] = ()
    since: str = ""
    until: str = ""
    events: bool = False
    freelancer: str = ""
    sandbox: str = ""
    session: str = ""
    model: str = ""
    watch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """Which running time or storage, and how to add it up."""

    storage: bool = False
    by: Sequence[str] = ()
    since: str = ""
    until: str = ""
    freelancer: str = ""
    sandbox: str = ""


async def usage(shell: Shell, options: UsageOptions) -> Exit:
    """Show usage."""
    if len(options.by) > 3 or len({*options.by}) != len(options.by):
        raise UsageError("--by takes up to three different dimensions.")
    if options.watch and (options.events or options.by or options.until):
        raise UsageError("--watch goes without --events, --by and --until.")
    sandbox = await find_sandbox(shell.client, options.sandbox, ended=True) if options.sandbox else ""
    wanted = usage_filter(
        freelancer=options.freelancer,
        sandbox=sandbox,
        session=await find_session(shell.client, options.session, sandbox=sandbox) if options.session else "",
        model=options.model,
        since=moment(options.since),
        until=moment(options.until),
    )
    if options.watch:
        return await _watch(shell, wanted)
    if options.events:
        found = shell.client.usage_events(wanted)
        if shell.json:
            async for each in found:
                shell.emit(each)
        else:
            shell.out.print(event_table([each async for each in found], shell.out))
        return Exit.OK
    summary = await shell.client.usage_summary(wanted, by=options.by)
    if shell.json:
        shell.emit(summary)
        return Exit.OK
    rows = summary.sums if options.by else [summary.total]
    shell.out.print(sum_table(rows, summary.total if options.by else None, options.by, shell.out))
    if summary.total.open_calls:
        shell.err.print(
            Text(f"{summary.total.open_calls} calls are still open: the figures will grow.", style="yellow")
        )
    if summary.total.estimated_calls:
        shell.err.print(
            Text(f"{summary.total.estimated_calls} calls are estimated: their end was not seen.", style="yellow")
        )
    return Exit.OK


async def runtime(shell: Shell, options: RuntimeOptions) -> Exit:
    """Show for how long sandboxes ran, or how much storage they kept."""
    if len(options.by) > 3 or len({*options.by}) != len(options.by):
        raise UsageError("--by takes up to three different dimensions.")
    kind = usage_pb2.RESOURCE_KIND_STORAGE if options.storage else usage_pb2.RESOURCE_KIND_RUNTIME
    request = usage_pb2.SummarizeResourcesRequest(
        kind=kind,
        freelancer=options.freelancer,
        sandbox=await find_sandbox(shell.client, options.sandbox, ended=True) if options.sandbox else "",
        group_by=[usage_pb2.ResourceDimension.Value(f"RESOURCE_DIMENSION_{each.upper()}") for each in options.by],
    )
    for said, field in ((options.since, request.start_time), (options.until, request.end_time)):
        meant = moment(said)
        if meant is not None:
            field.FromDatetime(meant)
    answer = await shell.client.resources(request)
    if shell.json:
        shell.emit(answer)
    else:
        shell.out.print(resource_table(answer, options.by, shell.out, storage=options.storage))
    return Exit.OK


async def _watch(shell: Shell, wanted: usage_pb2.UsageFilter) -> Exit:
    async for each in shell.client.watch_usage(wanted):
        if shell.json:
            shell.emit(each)
        else:
            shell.out.print(news_line(each))
    return Exit.OK


def moment(said: str, *, now: datetime | None = None) -> datetime | None:
    """Return the moment that is meant: a date, a date with time, `today`, or a span back from now such as `24h`.

    Raises:
        UsageError: It is none of these.
    """
    word = said.strip().lower()
    if not word:
        return None
    here = (now or datetime.now(UTC)).astimezone()
    if word in ("today", "yesterday"):
        midnight = here.replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight if word == "today" else midnight - timedelta(days=1)
    if matched := _SPAN.fullmatch(word):
        return here - timedelta(**{_UNITS[matched[2]]: int(matched[1])})
    try:
        parsed = datetime.fromisoformat(said.strip())
    except ValueError as error:
        raise UsageError(
            f"{said!r} is no moment. Say 2026-11-23, 2026-11-23T14:00, today, yesterday, or a span back: 30m, 24h, 7d."
        ) from error
    return parsed.astimezone()
