"""Tables of budgets and prices. Cells are plain text, never markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandboxd.ctl.figures import money
from sandboxd.ctl.names import bare
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.tables import when
from sandboxd.v1 import budget_pb2, price_pb2

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
