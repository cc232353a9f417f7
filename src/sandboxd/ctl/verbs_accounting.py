"""The verbs of usage, budgets and prices: names, options and help. What they do is in `commands/`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sandboxd.ctl.completion import complete_sandbox
from sandboxd.ctl.options import Dimension, FreelancerOption, OutputOption, ResourceDimension, SandboxOption
from sandboxd.ctl.root import app, execute, help_text

budgets = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
prices = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(budgets, name="budgets", help="Limit what a client, a freelancer or a sandbox may spend.")
usages = typer.Typer(rich_markup_mode=None)
app.add_typer(usages, name="usage")
app.add_typer(prices, name="prices", help="Manage what the tokens of a model cost (the platform).")


class Period(StrEnum):
    """After which span a budget begins anew."""

    DAY = "day"
    MONTH = "month"


@budgets.command(
    "set",
    help=help_text(
        "Make a budget, or change the one that there is.\n\n"
        "LIMIT is an amount with its currency, or tokens. Without --freelancer and --sandbox it is the client's own, "
        "which only the platform sets.",
        "sandboxctl budgets set 25USD --per month --freelancer ada",
        "sandboxctl budgets set 2Mtokens --per day --sandbox demo --warn 50 --warn 90",
        "sandboxctl budgets set 500USD --per month",
    ),
)
def set_budget(
    context: typer.Context,
    limit: Annotated[str, typer.Argument(metavar="LIMIT", help="25USD, 12.50EUR, 500000tokens, 2Mtokens.")],
    per: Annotated[Period, typer.Option("--per", help="Begins anew each day or month (UTC).")] = Period.MONTH,
    freelancer: Annotated[str, typer.Option("--freelancer", help="Of this freelancer.", show_default=False)] = "",
    sandbox: Annotated[
        str,
        typer.Option("--sandbox", help="Of this sandbox.", autocompletion=complete_sandbox, show_default=False),
    ] = "",
    warn: Annotated[
        list[int] | None,
        typer.Option("--warn", min=1, max=100, metavar="PERCENT", help="Warn here; repeatable.  [default: 80, 95]"),
    ] = None,
    output: OutputOption = None,
) -> None:
    """Set a budget."""
    from sandboxd.ctl.commands import accounting as command

    options = command.BudgetOptions(limit=limit, per=per.value, freelancer=freelancer, sandbox=sandbox, warn=warn or ())
    execute(context, output, lambda shell: command.set_budget(shell, options))


@budgets.command(
    "ls", help=help_text("List budgets as they stand now.", "sandboxctl budgets ls", "sandboxctl budgets ls -o json")
)
def list_budgets(
    context: typer.Context,
    freelancer: FreelancerOption = "",
    sandbox: SandboxOption = "",
    output: OutputOption = None,
) -> None:
    """List budgets."""
    from sandboxd.ctl.commands import accounting as command

    execute(context, output, lambda shell: command.list_budgets(shell, freelancer=freelancer, sandbox=sandbox))


@budgets.command("rm", help=help_text("Remove a budget.", "sandboxctl budgets rm bdg-01jd2m…"))
def remove_budget(
    context: typer.Context,
    budget: Annotated[str, typer.Argument(metavar="BUDGET", help="Id, as `ls` shows it.", show_default=False)],
    output: OutputOption = None,
) -> None:
    """Remove a budget."""
    from sandboxd.ctl.commands import accounting as command

    execute(context, output, lambda shell: command.remove_budget(shell, budget))


@budgets.command(
    "rebuild",
    help=help_text(
        "Count all budgets of the client anew from the ledger (the platform).", "sandboxctl budgets rebuild"
    ),
)
def rebuild_budgets(context: typer.Context, output: OutputOption = None) -> None:
    """Count budgets anew."""
    from sandboxd.ctl.commands import accounting as command

    execute(context, output, command.rebuild_budgets)


@prices.command(
    "add",
    help=help_text(
        "Add a price. Calls that are settled already keep theirs.\n\n"
        "MODEL is a name or a shell pattern; `*` is for every model that has none of its own. RATE is what a million "
        "tokens cost as INPUT/CACHED/OUTPUT; for longer prompts another one with the length in front.",
        "sandboxctl prices add gemini-2.5-flash 0.30/0.03/2.50",
        "sandboxctl prices add gemini-2.5-pro 1.25/0.125/10 200000:2.50/0.25/15 --from 2027-01-01",
        "sandboxctl prices add '*' 5/5/20 --currency EUR",
    ),
)
def add_price(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)],
    rates: Annotated[list[str], typer.Argument(metavar="RATE…", show_default=False)],
    currency: Annotated[str, typer.Option("--currency", help="ISO 4217 code.")] = "USD",
    begin: Annotated[
        str, typer.Option("--from", help="From this moment; without it from now.", show_default=False)
    ] = "",
    end: Annotated[str, typer.Option("--until", help="Before this moment.", show_default=False)] = "",
    output: OutputOption = None,
) -> None:
    """Add a price."""
    from sandboxd.ctl.commands import accounting as command

    execute(
        context,
        output,
        lambda shell: command.add_price(shell, model, currency=currency, rates=rates, begin=begin, end=end),
    )


@prices.command("end", help=help_text("Let a price end.", "sandboxctl prices end list-2026-07-gemini-2.5-flash"))
def end_price(
    context: typer.Context,
    price: Annotated[str, typer.Argument(metavar="PRICE", help="Id, as `ls` shows it.", show_default=False)],
    at: Annotated[str, typer.Option("--at", help="At this moment; without it now.", show_default=False)] = "",
    output: OutputOption = None,
) -> None:
    """Let a price end."""
    from sandboxd.ctl.commands import accounting as command

    execute(context, output, lambda shell: command.end_price(shell, price, at=at))


@prices.command(
    "ls",
    help=help_text("List prices.", "sandboxctl prices ls", "sandboxctl prices ls --model gemini-2.5-flash --all"),
)
def list_prices(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Ended ones, too.")] = False,
    model: Annotated[str, typer.Option("--model", help="Only what covers this model.", show_default=False)] = "",
    output: OutputOption = None,
) -> None:
    """List prices."""
    from sandboxd.ctl.commands import accounting as command

    execute(context, output, lambda shell: command.list_prices(shell, every=every, model=model))


@usages.callback(
    invoke_without_command=True,
    help=help_text(
        "Show tokens and cost, from the ledger that is billed.",
        "sandboxctl usage --by model",
        "sandboxctl usage --by freelancer --by day --since 7d",
        "sandboxctl usage --sandbox demo --events --since today",
        "sandboxctl usage --watch",
        "sandboxctl usage runtime --by tier --by state --since 7d",
    ),
)
def usage(
    context: typer.Context,
    by: Annotated[
        list[Dimension] | None, typer.Option("--by", help="Add up by this; up to three.", show_default=False)
    ] = None,
    since: Annotated[
        str,
        typer.Option("--since", help="From this moment: 2026-11-23[T14:00], today, 24h, 7d.", show_default=False),
    ] = "",
    until: Annotated[str, typer.Option("--until", help="Before this moment.", show_default=False)] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Calls and totals as they come, until Ctrl-C.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Each call of the model instead of sums.")] = False,
    freelancer: FreelancerOption = "",
    sandbox: SandboxOption = "",
    session: Annotated[str, typer.Option("--session", help="Only this session.", show_default=False)] = "",
    model: Annotated[str, typer.Option("--model", help="Only this model.", show_default=False)] = "",
    output: OutputOption = None,
) -> None:
    """Show usage."""
    if context.invoked_subcommand is not None:
        return
    from sandboxd.ctl.commands import usage as command

    options = command.UsageOptions(
        by=[each.value for each in by or ()],
        since=since,
        until=until,
        events=events,
        freelancer=freelancer,
        sandbox=sandbox,
        session=session,
        model=model,
        watch=watch,
    )
    execute(context, output, lambda shell: command.usage(shell, options))


@usages.command(
    "runtime",
    help=help_text(
        "Show for how long sandboxes ran, or with --storage how much they kept.",
        "sandboxctl usage runtime --by sandbox --by state",
        "sandboxctl usage runtime --storage --by freelancer --by day --since 7d",
    ),
)
def runtime(
    context: typer.Context,
    by: Annotated[
        list[ResourceDimension] | None, typer.Option("--by", help="Add up by this; up to three.", show_default=False)
    ] = None,
    storage: Annotated[bool, typer.Option("--storage", help="Storage instead of running time.")] = False,
    since: Annotated[str, typer.Option("--since", help="From this moment.", show_default=False)] = "",
    until: Annotated[str, typer.Option("--until", help="Before this moment.", show_default=False)] = "",
    freelancer: FreelancerOption = "",
    sandbox: SandboxOption = "",
    output: OutputOption = None,
) -> None:
    """Show running time."""
    from sandboxd.ctl.commands import usage as command

    options = command.RuntimeOptions(
        storage=storage,
        by=[each.value for each in by or ()],
        since=since,
        until=until,
        freelancer=freelancer,
        sandbox=sandbox,
    )
    execute(context, output, lambda shell: command.runtime(shell, options))
