"""Tables of sandboxes, sessions and usage. Cells are plain text, never markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandboxd.ctl.figures import ago, count, money, span
from sandboxd.ctl.names import bare
from sandboxd.ctl.sanitize import clean, clean_line
from sandboxd.v1 import backup_pb2, sandbox_pb2, session_pb2, usage_pb2

GAP = 3
"""Columns between two cells, where the terminal is measured."""

_Row = tuple[str | Text, ...]

_STATE_STYLES = {
    "ACTIVE": "green",
    "HIBERNATED": "blue",
    "STOPPED": "blue",
    "PAUSED": "yellow",
    "FAILED": "bold red",
    "TERMINATED": "dim",
}


def sandbox_table(sandboxes: Iterable[sandbox_pb2.Sandbox], console: Console) -> Table:
    """Make the table of `ls` and `watch`."""
    rows: list[_Row] = [
        (
            bare(each.name),
            clean_line(each.display_name, limit=40),
            state_text(each),
            clean_line(each.freelancer),
            tier_name(each.tier),
            _ago(each, "last_use_time", "create_time"),
            _unsaved(each),
            _labels(each.labels),
        )
        for each in sandboxes
    ]
    columns = ("SANDBOX", "NAME", "STATE", "FREELANCER", "TIER", "LAST USE", "UNSAVED", "LABELS")
    return filled(console, columns, rows, spare=("TIER", "FREELANCER", "LABELS", "LAST USE"))


def session_table(sessions: Iterable[session_pb2.Session], console: Console) -> Table:
    """Make the table of `sessions`."""
    rows: list[_Row] = [
        (
            bare(each.name),
            clean_line(each.title, limit=50),
            str(each.turns),
            str(each.head_sequence),
            clean_line(each.mode),
            clean_line(each.model),
            _ago(each, "update_time", "create_time"),
            Text("working", style="green") if each.open_turn else "",
        )
        for each in sessions
    ]
    columns = ("SESSION", "TITLE", "TURNS", "EVENTS", "MODE", "MODEL", "LAST EVENT", "NOW")
    return filled(console, columns, rows, spare=("EVENTS", "MODE", "MODEL", "TURNS"))


def sum_table(
    sums: Iterable[usage_pb2.UsageSum], total: usage_pb2.UsageSum | None, by: Sequence[str], console: Console
) -> Table:
    """Make the table of `usage`: a column for each dimension, then the figures."""
    figures = ("CALLS", "FAILED", "INPUT", "CACHED", "OUTPUT", "THINKING", "TOTAL", "COST")
    table = _table(console, *(each.upper() for each in by), *figures, right=figures)
    for each in sums:
        table.add_row(*(clean_line(key.rpartition("/")[2] or "-") for key in each.keys), *_figures(each))
    if total is not None:
        table.add_section()
        names = ["total", *[""] * (len(by) - 1)] if by else []
        table.add_row(*names, *_figures(total), style="bold")
    return table


def event_table(events: Iterable[usage_pb2.UsageEvent], console: Console) -> Table:
    """Make the table of single calls."""
    figures = ("INPUT", "CACHED", "OUTPUT", "THINKING", "COST")
    table = _table(console, "STARTED", "MODEL", "METHOD", "STATE", "HTTP", *figures, "SESSION", right=figures)
    for each in events:
        tokens = each.tokens
        counts = (tokens.prompt, tokens.cached, tokens.output, tokens.thoughts)
        table.add_row(
            when(each.start_time),
            clean_line(each.model_version or each.model),
            clean_line(each.method),
            usage_pb2.UsageState.Name(each.state).removeprefix("USAGE_STATE_").lower(),
            str(each.http_status or "-") + (f" {clean_line(each.error_reason)}" if each.error_reason else ""),
            *(f"{count:,}" for count in counts),
            money(each.cost_micros, each.currency) if each.HasField("cost_micros") else "-",
            bare(each.session) or "-",
        )
    return table


def sandbox_facts(sandbox: sandbox_pb2.Sandbox) -> Table:
    """Make the list of everything that is known of one sandbox."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts: list[tuple[str, str | Text]] = [
        ("name", sandbox.name),
        ("display name", clean_line(sandbox.display_name)),
        ("state", state_text(sandbox)),
        ("reason", clean(sandbox.state_reason)),
        ("client", clean_line(sandbox.client)),
        ("freelancer", clean_line(sandbox.freelancer)),
        ("tier", tier_name(sandbox.tier)),
        ("model", clean_line(sandbox.model) or "the CLI chooses"),
        ("approval mode", clean_line(sandbox.approval_mode) or "default"),
        ("labels", _labels(sandbox.labels)),
        ("backend", clean_line(sandbox.backend)),
        (
            "incarnation",
            f"{clean_line(sandbox.incarnation)} (number {sandbox.incarnations})" * bool(sandbox.incarnation),
        ),
        ("image", sandbox.image.rpartition("/")[2]),
        ("created", _moment(sandbox, "create_time")),
        ("last use", _moment(sandbox, "last_use_time")),
        ("terminated", _moment(sandbox, "terminate_time")),
        ("volumes", _release_line(sandbox)),
        ("backed up", final_line(sandbox)),
        ("rests", lifecycle_line(sandbox.lifecycle)),
        ("kept awake", _until(sandbox, "keep_awake_until")),
        ("next", _next(sandbox)),
        ("unsaved", _unsaved_line(sandbox)),
    ]
    for name, value in facts:
        if str(value):
            table.add_row(Text(name, style="dim"), value)
    return table


def _release_line(sandbox: sandbox_pb2.Sandbox) -> str:
    """Write where the files of a terminated sandbox are, where its volumes were released."""
    if not sandbox.HasField("volumes_release"):
        return ""
    said = sandbox.volumes_release
    since = f"released {when(said.end_time)}" if said.HasField("end_time") else "being released"
    return f"{since}; restore brings them back from {bare(said.backup)}"


def final_line(sandbox: sandbox_pb2.Sandbox) -> str:
    """Say what a terminated sandbox is backed up as; nothing of another one."""
    if not sandbox.HasField("final_backup"):
        return ""
    final = sandbox.final_backup
    name = bare(final.backup)
    match final.state:
        case backup_pb2.FINAL_BACKUP_STATE_PENDING:
            return "not yet; policy does it soon"
        case backup_pb2.FINAL_BACKUP_STATE_CREATING:
            return f"not yet: {name} is being made"
        case backup_pb2.FINAL_BACKUP_STATE_COMPLETE:
            return f"as {name}"
        case backup_pb2.FINAL_BACKUP_STATE_FAILED:
            return f"not yet: {clean_line(final.failure.message)} Policy tries again."
        case backup_pb2.FINAL_BACKUP_STATE_EMPTY:
            return "no: it had no volumes"
        case backup_pb2.FINAL_BACKUP_STATE_DELETED:
            return f"no more: {name} was deleted"
        case backup_pb2.FINAL_BACKUP_STATE_OFF:
            return "no: this installation does not"
        case _:
            return str(final.state)


def lifecycle_line(wishes: sandbox_pb2.Lifecycle) -> str:
    """Write when something rests, as far as it has wishes of its own."""
    limits = (
        ("hibernates", wishes.hibernate_after if wishes.HasField("hibernate_after") else None),
        ("stops", wishes.stop_after if wishes.HasField("stop_after") else None),
        ("terminates", wishes.terminate_after if wishes.HasField("terminate_after") else None),
        ("terminates paused", wishes.terminate_paused_after if wishes.HasField("terminate_paused_after") else None),
    )
    parts = [
        f"{what} {'never' if limit.never else 'after ' + span(limit.after.ToTimedelta().total_seconds())}"
        for what, limit in limits
        if limit is not None
    ]
    if wishes.HasField("discard_root_changes"):
        parts.append(f"root file system {'may' if wishes.discard_root_changes else 'must not'} be lost")
    return ", ".join(parts)


def _unsaved(sandbox: sandbox_pb2.Sandbox) -> str:
    """Write what of a sandbox is unsaved, for the table of sandboxes; nothing where nothing is known."""
    if not sandbox.HasField("unsaved"):
        return ""
    return count(sandbox.unsaved.packages, "package") if sandbox.unsaved.packages else "changes"


def _unsaved_line(sandbox: sandbox_pb2.Sandbox) -> str:
    """Write it for the list of everything that is known of one sandbox."""
    if not sandbox.HasField("unsaved"):
        return ""
    what = "changes of the root file system" if not sandbox.unsaved.packages else _unsaved(sandbox)
    return f"{what}, since {ago(sandbox.unsaved.dirty_since.ToDatetime(tzinfo=UTC)).removesuffix(' ago')}"


def _next(sandbox: sandbox_pb2.Sandbox) -> str:
    """Write what policy does next: a state of its own that nobody asked for should not surprise."""
    if not sandbox.HasField("next_step"):
        return ""
    planned = sandbox.next_step
    words = {
        sandbox_pb2.LIFECYCLE_STEP_HIBERNATE: "hibernates",
        sandbox_pb2.LIFECYCLE_STEP_STOP: "stops",
        sandbox_pb2.LIFECYCLE_STEP_TERMINATE: "terminates",
    }
    left = (planned.time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
    moment = f"in {span(left)}" if left > 0 else "now"
    return f"{words.get(planned.step, 'changes')} {moment} if it is not used"


def _until(sandbox: sandbox_pb2.Sandbox, field: str) -> str:
    if not sandbox.HasField(field):  # type: ignore[arg-type]  # the names are literals above
        return ""
    stamp: Timestamp = getattr(sandbox, field)
    return f"until {when(stamp)}" if stamp.ToDatetime(tzinfo=UTC) > datetime.now(UTC) else ""


def state_text(sandbox: sandbox_pb2.Sandbox) -> Text:
    """Return the state in its colour."""
    name = state_name(sandbox.state)
    return Text(name, style=_STATE_STYLES.get(name, "cyan"))


def state_name(state: sandbox_pb2.SandboxState.ValueType) -> str:
    """Return a state as people say it; a number where this client is older than the service."""
    known = sandbox_pb2.SandboxState.values()
    return sandbox_pb2.SandboxState.Name(state).removeprefix("SANDBOX_STATE_") if state in known else str(state)


def tier_name(tier: sandbox_pb2.Tier.ValueType) -> str:
    """Return a tier as people say it."""
    known = sandbox_pb2.Tier.values()
    return sandbox_pb2.Tier.Name(tier).removeprefix("TIER_").lower() if tier in known else str(tier)


def when(stamp: Timestamp) -> str:
    """Return a moment in this machine's time zone."""
    return stamp.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _table(console: Console, *columns: str, right: Iterable[str] = ()) -> Table:
    style = box.SIMPLE_HEAD if console.is_terminal else None
    table = Table(box=style, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return table


def filled(console: Console, columns: Sequence[str], rows: Sequence[_Row], *, spare: Sequence[str] = ()) -> Table:
    """Make a table of the columns that hold anything.

    The first column, of ids, is never cut. Where the terminal is too narrow, spare columns are left out, first first,
    before the others are cut.
    """
    widths = {
        name: max(len(name), *(len(str(row[number])) for row in rows), 0)
        for number, name in enumerate(columns)
        if any(str(row[number]) for row in rows)
    }
    for name in spare:
        if sum(widths.values()) + GAP * len(widths) <= console.width:
            break
        widths.pop(name, None)
    table = _table(console, *widths)
    if rows:
        table.columns[0].min_width = widths[columns[0]]
    for row in rows:
        table.add_row(*(cell for name, cell in zip(columns, row, strict=True) if name in widths))
    return table


def _figures(each: usage_pb2.UsageSum) -> list[str]:
    tokens = each.tokens
    costs = ", ".join(money(cost.micros, cost.currency) for cost in each.costs) or "-"
    if each.unpriced_calls:
        costs += f" + {each.unpriced_calls} unpriced"
    counts = (tokens.prompt, tokens.cached, tokens.output, tokens.thoughts, tokens.total)
    return [f"{each.calls:,}", f"{each.failed_calls:,}", *(f"{count:,}" for count in counts), costs]


def _labels(labels: Mapping[str, str]) -> str:
    return " ".join(f"{clean_line(key)}={clean_line(value)}" for key, value in sorted(labels.items()))


def _ago(message: sandbox_pb2.Sandbox | session_pb2.Session, *fields: str) -> str:
    for field in fields:
        if message.HasField(field):  # type: ignore[arg-type]  # the names are literals above
            stamp: Timestamp = getattr(message, field)
            return ago(stamp.ToDatetime(tzinfo=UTC))
    return "-"


def _moment(sandbox: sandbox_pb2.Sandbox, field: str) -> str:
    if not sandbox.HasField(field):  # type: ignore[arg-type]  # the names are literals above
        return ""
    stamp: Timestamp = getattr(sandbox, field)
    return f"{when(stamp)} ({ago(stamp.ToDatetime(tzinfo=UTC), now=datetime.now(UTC))})"
