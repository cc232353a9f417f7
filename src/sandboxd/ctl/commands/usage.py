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


async def usage(shell: Shell, options: UsageOptions) -> Exit:
    """Show usage."""
    if len(options.by) > 3 or len({*options.by}) != len(options.by):
        raise UsageError("--by takes up to three different dimensions.")
    sandbox = await find_sandbox(shell.client, options.sandbox, ended=True) if options.sandbox else ""
    wanted = usage_filter(
        freelancer=options.freelancer,
        sandbox=sandbox,
        session=await find_session(shell.client, options.session, sandbox=sandbox) if options.session else "",
        model=options.model,
        since=moment(options.since),
        until=moment(options.until),
    )
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
