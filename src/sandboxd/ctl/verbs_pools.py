"""The verbs of warm pools: names, options and help. What they do is in `commands/pools.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from sandboxd.ctl.options import OutputOption, Tier
from sandboxd.ctl.root import app, execute, help_text

pools = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(pools, name="pools", help="Keep sandboxes ready, so that `create` answers in milliseconds.")

PoolArgument = Annotated[str, typer.Argument(metavar="POOL", help="Id or tier, as `ls` shows it.", show_default=False)]
MinOption = Annotated[
    int | None, typer.Option("--min", min=0, help="So many wait also when the pool is idle.", show_default=False)
]
TargetOption = Annotated[
    int | None, typer.Option("--target", min=0, help="So many wait while it is used.", show_default=False)
]
MaxOption = Annotated[
    int | None, typer.Option("--max", min=0, help="There are never more. 0, as at first: --target.", show_default=False)
]
IdleOption = Annotated[
    float | None,
    typer.Option(
        "--idle",
        min=1,
        metavar="MINUTES",
        help="Unused for so long it shrinks to --min. At first 240.",
        show_default=False,
    ),
]
AgeOption = Annotated[
    float | None,
    typer.Option(
        "--max-age",
        min=1,
        metavar="MINUTES",
        help="Members older than this are replaced. At first 1440.",
        show_default=False,
    ),
]


@pools.command("ls", help=help_text("List pools as they stand now.", "sandboxctl pools ls"))
def list_pools(context: typer.Context, output: OutputOption = None) -> None:
    """List pools."""
    from sandboxd.ctl.commands import pools as command

    execute(context, output, command.ls)


@pools.command(
    "create",
    help=help_text(
        "Keep sandboxes of a tier ready. There is one pool for each tier.",
        "sandboxctl pools create --target 3",
        "sandboxctl pools create --tier standard --min 1 --target 5 --max 8",
    ),
)
def create_pool(
    context: typer.Context,
    tier: Annotated[Tier, typer.Option("--tier", help="How much each may use.")] = Tier.BASIC,
    least: MinOption = None,
    target: TargetOption = None,
    most: MaxOption = None,
    idle: IdleOption = None,
    age: AgeOption = None,
    output: OutputOption = None,
) -> None:
    """Make a pool."""
    from sandboxd.ctl.commands import pools as command

    options = command.PoolOptions(least=least, target=target, most=most, idle_minutes=idle, age_minutes=age)
    execute(context, output, lambda shell: command.create(shell, tier.value, options))


@pools.command(
    "set",
    help=help_text("Change a pool; what is not named stays.", "sandboxctl pools set basic --target 10 --max 12"),
)
def set_pool(
    context: typer.Context,
    pool: PoolArgument,
    least: MinOption = None,
    target: TargetOption = None,
    most: MaxOption = None,
    idle: IdleOption = None,
    age: AgeOption = None,
    output: OutputOption = None,
) -> None:
    """Change a pool."""
    from sandboxd.ctl.commands import pools as command

    options = command.PoolOptions(least=least, target=target, most=most, idle_minutes=idle, age_minutes=age)
    execute(context, output, lambda shell: command.change(shell, pool, options))


@pools.command("rm", help=help_text("Delete a pool; sandboxes made from it stay.", "sandboxctl pools rm basic"))
def remove_pool(context: typer.Context, pool: PoolArgument, output: OutputOption = None) -> None:
    """Delete a pool."""
    from sandboxd.ctl.commands import pools as command

    execute(context, output, lambda shell: command.rm(shell, pool))
