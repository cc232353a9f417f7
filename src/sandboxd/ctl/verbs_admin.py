"""The verbs of operators: names, options and help. What they do is in `commands/admin.py`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sandboxd.ctl.completion import complete_abandoned, complete_holder
from sandboxd.ctl.options import OutputOption
from sandboxd.ctl.root import app, execute, help_text

admin = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
circuit = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(admin, name="admin", help="Operate an installation (the platform).")
admin.add_typer(circuit, name="circuit", help="The gateways' circuits to the model API.")


HolderArgument = Annotated[
    str, typer.Argument(help="Who holds: a name that nobody else uses.", autocompletion=complete_holder)
]


class SweepName(StrEnum):
    """A kind of background work."""

    RECOVERY = "recovery"
    ORPHANS = "orphans"
    USAGE = "usage"
    RETENTION = "retention"
    LIFECYCLE = "lifecycle"
    IMAGES = "images"


@admin.command(
    "status",
    help=help_text(
        "Show replicas, gateways with their circuits, queues and the database pool.",
        "sandboxctl admin status",
        "sandboxctl admin status -o json",
    ),
)
def status(context: typer.Context, output: OutputOption = None) -> None:
    """Show how the installation is."""
    from sandboxd.ctl.commands import admin as command

    execute(context, output, command.status)


@admin.command(
    "sweep",
    help=help_text(
        "Run background work now, and tell what it did. Without a name all of it.",
        "sandboxctl admin sweep",
        "sandboxctl admin sweep orphans usage",
        "sandboxctl admin sweep --dry-run",
        "sandboxctl admin sweep images --dry-run",
    ),
)
def sweep(
    context: typer.Context,
    sweeps: Annotated[
        list[SweepName] | None,
        typer.Argument(metavar="[SWEEP]...", help="recovery, orphans, usage, retention, lifecycle, images."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; tell what would become of idle sandboxes and of images.")
    ] = False,
    output: OutputOption = None,
) -> None:
    """Run sweeps."""
    from sandboxd.ctl.commands import admin as command

    execute(context, output, lambda shell: command.sweep(shell, [one.value for one in sweeps or ()], dry_run=dry_run))


@admin.command(
    "abandoned",
    help=help_text(
        "Show what nobody needs any more and still costs, since when, and when it goes; or remove some of it now.",
        "sandboxctl admin abandoned",
        "sandboxctl admin abandoned --remove volume:client-acme/home-sbx-01jd2m… --dry-run",
        "sandboxctl admin abandoned --remove volume:client-acme/home-sbx-01jd2m…",
    ),
)
def abandoned(
    context: typer.Context,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            "--remove",
            metavar="[KIND:]NAME",
            help="Remove this, whatever its grace, if it is abandoned still. Can be repeated.",
            show_default=False,
            autocompletion=complete_abandoned,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what --remove would remove.")] = False,
    output: OutputOption = None,
) -> None:
    """Show what is abandoned."""
    from sandboxd.ctl.commands import abandoned as command

    execute(context, output, lambda shell: command.abandoned(shell, remove or (), dry_run=dry_run))


@admin.command(
    "hold-pushes",
    help=help_text(
        "Keep everybody from writing to the registry, as while it collects its garbage. Commits wait meanwhile.",
        "sandboxctl admin hold-pushes collecting --for 2h",
        "sandboxctl admin hold-pushes collecting --for 2h --until-stopped",
    ),
)
def hold_pushes(
    context: typer.Context,
    holder: HolderArgument,
    span: Annotated[
        str, typer.Option("--for", metavar="SPAN", help="When it ends by itself: 1m to 6h, from now on.")
    ] = "1h",
    wait: Annotated[
        str, typer.Option("--wait", metavar="SPAN", help="How long pushes in flight are waited for, at most 1h.")
    ] = "15m",
    until_stopped: Annotated[
        bool, typer.Option("--until-stopped", help="Stay until Ctrl-C or SIGTERM, then release.")
    ] = False,
    held_file: Annotated[
        Path | None,
        typer.Option("--held-file", help="Make this file when pushes are held, for who waits.", show_default=False),
    ] = None,
    output: OutputOption = None,
) -> None:
    """Hold pushes."""
    from sandboxd.ctl.commands import push_holds as command

    execute(
        context,
        output,
        lambda shell: command.hold(
            shell, holder, span=span, wait=wait, until_stopped=until_stopped, held_file=held_file
        ),
    )


@admin.command(
    "release-pushes",
    help=help_text("Let everybody write to the registry again.", "sandboxctl admin release-pushes collecting"),
)
def release_pushes(context: typer.Context, holder: HolderArgument, output: OutputOption = None) -> None:
    """End a hold."""
    from sandboxd.ctl.commands import push_holds as command

    execute(context, output, lambda shell: command.release(shell, holder))


@admin.command(
    "drain",
    help=help_text(
        "Let the replica that answers hand over and take nothing new. Turns go on; clients come again elsewhere.",
        "sandboxctl --address replica-2:50051 admin drain",
    ),
)
def drain(context: typer.Context, output: OutputOption = None) -> None:
    """Drain a replica."""
    from sandboxd.ctl.commands import admin as command

    execute(context, output, command.drain)


@admin.command(
    "undrain",
    help=help_text(
        "Let the replica that answers take new work again.", "sandboxctl --address replica-2:50051 admin undrain"
    ),
)
def undrain(context: typer.Context, output: OutputOption = None) -> None:
    """End a drain."""
    from sandboxd.ctl.commands import admin as command

    execute(context, output, command.undrain)


@circuit.command(
    "reset",
    help=help_text(
        "Let gateways call the model API again at once, where many failures in a row keep them from it.",
        "sandboxctl admin circuit reset",
        "sandboxctl admin circuit reset gtw-01jd2m…",
    ),
)
def reset(
    context: typer.Context,
    gateway: Annotated[str, typer.Argument(metavar="[GATEWAY]", help="One gateway, as `status` shows it.")] = "",
    output: OutputOption = None,
) -> None:
    """Reset circuits."""
    from sandboxd.ctl.commands import admin as command

    execute(context, output, lambda shell: command.reset_circuit(shell, gateway))
