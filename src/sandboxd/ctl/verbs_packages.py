"""The verb of packages: name, options and help. What it does is in `commands/packages.py`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sandboxd.ctl.options import OutputOption, SandboxArgument
from sandboxd.ctl.root import app, execute, help_text


class Manager(StrEnum):
    """Whose packages."""

    DPKG = "dpkg"
    PIP = "pip"
    NPM = "npm"
    CARGO = "cargo"
    GEM = "gem"
    GO = "go"


@app.command(
    help=help_text(
        "List what is installed in a running sandbox, as its package managers say.",
        "sandboxctl packages demo",
        "sandboxctl packages demo --unsaved",
        "sandboxctl packages demo --manager pip --output json",
    )
)
def packages(
    context: typer.Context,
    sandbox: SandboxArgument,
    manager: Annotated[
        Manager | None, typer.Option("--manager", help="Only of this manager.", show_default=False)
    ] = None,
    unsaved: Annotated[
        bool,
        typer.Option(
            "--unsaved", help="Only what is not in the image and not on the home volume: gone with the compute."
        ),
    ] = False,
    output: OutputOption = None,
) -> None:
    """List packages."""
    from sandboxd.ctl.commands import packages as command

    execute(
        context,
        output,
        lambda shell: command.ls(shell, sandbox, manager=manager.value if manager else "", unsaved=unsaved),
    )
