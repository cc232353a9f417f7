"""Tables of budgets and prices. Cells are plain text, never markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandboxd.ctl.figures import money, span
from sandboxd.ctl.names import bare
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.tables import when
from sandboxd.v1 import budget_pb2, price_pb2, usage_pb2

_LOW: Final = 80
_FULL: Final = 100


def budget_table(budgets: Iterable[budget_pb2.Budget], console: Console) -> Table:
    """Make the table of `budgets ls`."""
    figures = ("LIMIT", "SPENT", "RESERVED", "LEFT", "USED")
    table = _table(console, "BUDGET", "OF", "PER", *figures, "BEGINS ANEW", right=figures)
    for each in budgets:
        use = each.use
        limit = each.money.micros if each.WhichOneof("limit") == "money" else each.tokens
        percent = 100 * (use.spent + use.reserved) // limit if limit else _FULL
        style = "bold red" if percent >= _FULL else "yellow" if percent >= _LOW else ""
        period = budget_pb2.BudgetPeriod.Name(each.period).removeprefix("BUDGET_PERIOD_").lower()
        table.add_row(
            bare(each.name),
            clean_line(each.freelancer or bare(each.sandbox) or each.client),
            period,
            *(_amount(each, one) for one in (limit, use.spent, use.reserved, use.remaining)),
            Text(f"{percent} %", style=style),
            use.period_end_time.ToDatetime().strftime("%Y-%m-%d UTC"),
        )
    return table


def price_table(prices: Iterable[price_pb2.Price], console: Console) -> Table:
    """Make the table of `prices ls`: a row for each length of prompt."""
    figures = ("PROMPT ABOVE", "INPUT", "CACHED", "OUTPUT")
    table = _table(console, "PRICE", "MODEL", *figures, "FROM", "UNTIL", right=figures)
    for each in prices:
        for number, rate in enumerate(each.rates):
            first = number == 0
            until = when(each.valid_until) if each.HasField("valid_until") else "-"
            table.add_row(
                bare(each.name) if first else "",
                clean_line(each.model) if first else "",
                f"{rate.above_prompt_tokens:,}",
                *(money(one, each.currency) for one in (rate.input, rate.cached, rate.output)),
                when(each.valid_from) if first else "",
                until if first else "",
            )
    return table


def resource_table(
    found: usage_pb2.SummarizeResourcesResponse, by: Sequence[str], console: Console, *, storage: bool
) -> Table:
    """Make the table of `usage runtime`: a column for each dimension, then the figures."""
    figures = ("SANDBOXES", "TIME", *(("GB HOURS",) if storage else ()))
    table = _table(console, *(each.upper() for each in by), *figures, right=figures)
    for each in found.sums if by else [found.total]:
        table.add_row(*(clean_line(key.rpartition("/")[2] or "-") for key in each.keys), *_held(each, storage=storage))
    if by:
        table.add_section()
        table.add_row("total", *[""] * (len(by) - 1), *_held(found.total, storage=storage), style="bold")
    return table


def news_line(news: usage_pb2.WatchUsageResponse) -> Text:
    """Write one piece of live news as a line."""
    match news.WhichOneof("news"):
        case "event":
            event = news.event
            cost = money(event.cost_micros, event.currency) if event.HasField("cost_micros") else "no price"
            whose = f"{clean_line(event.freelancer)} {bare(event.sandbox)}"
            return Text(f"{when(event.end_time)}  {whose}  {clean_line(event.model)}  {event.tokens.total:,}  {cost}")
        case "notice":
            notice = news.notice
            return Text(f"{when(notice.notice_time)}  {clean_line(notice.message)}", style="yellow")
        case _:
            totals = news.totals
            costs = ", ".join(money(cost.micros, clean_line(cost.currency)) for cost in totals.costs) or "-"
            line = f"total: {totals.calls:,} calls, {totals.tokens.total:,} tokens, {costs}"
            return Text(f"{line}, {totals.open_calls:,} open" if totals.open_calls else line, style="bold")


def _held(each: usage_pb2.ResourceSum, *, storage: bool) -> list[str]:
    cells = [f"{each.sandboxes:,}", span(each.duration.ToTimedelta().total_seconds())]
    return [*cells, f"{each.megabyte_seconds / 3_600_000:,.3f}"] if storage else cells


def limit_text(budget: budget_pb2.Budget) -> str:
    """Write what a budget allows."""
    return _amount(budget, budget.money.micros if budget.WhichOneof("limit") == "money" else budget.tokens)


def _amount(budget: budget_pb2.Budget, amount: int) -> str:
    if budget.WhichOneof("limit") == "money":
        return money(amount, clean_line(budget.money.currency))
    return f"{amount:,} tokens"


def _table(console: Console, *columns: str, right: Iterable[str] = ()) -> Table:
    style = box.SIMPLE_HEAD if console.is_terminal else None
    table = Table(box=style, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return table
