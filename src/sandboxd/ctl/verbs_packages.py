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
    PROGRAM = "program"


@app.command(
    help=help_text(
        "List what is installed in a sandbox, as its package managers say, and programs that none of them knows; "
        "or what was changed. Of one that does not run, what was known last.",
        "sandboxctl packages demo",
        "sandboxctl packages demo --unsaved",
        "sandboxctl packages demo --history",
        "sandboxctl packages demo --history --manager dpkg --limit 0",
        "sandboxctl packages demo --manager pip --output json",
    )
)
def packages(
    context: typer.Context,
    sandbox: SandboxArgument,
    manager: Annotated[
        Manager | None,
        typer.Option(
            "--manager", help="Only of this manager; `program` is what none of them knows.", show_default=False
        ),
    ] = None,
    unsaved: Annotated[
        bool,
        typer.Option(
            "--unsaved", help="Only what is not in the image and not on the home volume: gone with the compute."
        ),
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="What was installed, removed and changed, the newest last.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="With --history: the newest so many; 0 for all.")
    ] = 50,
    output: OutputOption = None,
) -> None:
    """List packages."""
    from sandboxd.ctl.commands import packages as command

    of = manager.value if manager else ""
    execute(
        context,
        output,
        lambda shell: (
            command.history(shell, sandbox, manager=of, unsaved=unsaved, limit=limit)
            if history
            else command.ls(shell, sandbox, manager=of, unsaved=unsaved)
        ),
    )
