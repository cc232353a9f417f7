"""The verbs of images: names, options and help. What they do is in `commands/images.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from sandboxd.ctl.completion import complete_image
from sandboxd.ctl.options import AnySandboxArgument, OutputOption, SandboxArgument
from sandboxd.ctl.root import app, execute, help_text


@app.command(
    help=help_text(
        "Keep what was installed outside home and workspace as an image: the sandbox's next start takes it. "
        "People work on meanwhile. Ctrl-C cancels the commit; pressed again it leaves.",
        "sandboxctl commit demo",
        "sandboxctl commit demo --dry-run",
        "digest=$(sandboxctl commit demo --output json | jq -r .digest)",
        "sandboxctl commit demo --follow",
    )
)
def commit(
    context: typer.Context,
    sandbox: SandboxArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count and show what would be kept; push and change nothing.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Begin nothing; follow the commit or upgrade that is at work.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Begin nothing; end the commit or upgrade that is at work.")
    ] = False,
    request_id: Annotated[
        str, typer.Option("--request-id", help="Makes it one commit, however often it is sent.", show_default=False)
    ] = "",
    output: OutputOption = None,
) -> None:
    """Commit a sandbox."""
    from sandboxd.ctl.commands import images

    if sum((dry_run or bool(request_id), follow, cancel)) > 1:
        raise typer.BadParameter("--follow and --cancel go with nothing else.")
    if follow or cancel:
        execute(context, output, lambda shell: (images.follow if follow else images.cancel)(shell, sandbox))
    else:
        execute(context, output, lambda shell: images.commit(shell, sandbox, dry_run=dry_run, request_id=request_id))


@app.command(
    help=help_text(
        "List a sandbox's images, the newest first.",
        "sandboxctl images demo",
        "sandboxctl images demo --all",
        "sandboxctl images demo --output json | jq -r .reference",
    )
)
def images(
    context: typer.Context,
    sandbox: AnySandboxArgument,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Commits that left no image, too, with why.")] = False,
    output: OutputOption = None,
) -> None:
    """List images."""
    from sandboxd.ctl.commands import images as command

    execute(context, output, lambda shell: command.ls(shell, sandbox, everything=everything))


@app.command(
    help=help_text(
        "Print the list of the packages in an image, a CycloneDX document as it is attached to the image. "
        "Without IMAGE that of the active one.",
        "sandboxctl sbom demo | jq -r '.components[].purl'",
        "sandboxctl sbom demo g000003 > g000003.cdx.json",
    )
)
def sbom(
    context: typer.Context,
    sandbox: AnySandboxArgument,
    image: Annotated[
        str,
        typer.Argument(metavar="[IMAGE]", help="Its tag or number.", autocompletion=complete_image, show_default=False),
    ] = "",
) -> None:
    """Print an SBOM."""
    from sandboxd.ctl.commands import images as command

    execute(context, None, lambda shell: command.sbom(shell, sandbox, image))


@app.command(
    help=help_text(
        "Let a sandbox's next start take an older image. What runs goes on and is given up: no commit takes it, until "
        "you roll forward to the image that it goes on from.",
        "sandboxctl rollback demo g000003",
        "sandboxctl rollback demo 3 && sandboxctl pause demo && sandboxctl resume demo",
    )
)
def rollback(
    context: typer.Context,
    sandbox: SandboxArgument,
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="Its tag or number.",
            autocompletion=complete_image,
            show_default=False,
        ),
    ],
    output: OutputOption = None,
) -> None:
    """Roll back."""
    from sandboxd.ctl.commands import images as command

    execute(context, output, lambda shell: command.rollback(shell, sandbox, image))


@app.command(
    help=help_text(
        "Make what is installed in a paused or stopped sandbox again on the base that sandboxes are made from now. "
        "The image before stays and can be rolled back to. Ctrl-C cancels it; pressed again it leaves.",
        "sandboxctl upgrade demo --dry-run",
        "sandboxctl upgrade demo",
        "sandboxctl upgrade demo --skip",
    )
)
def upgrade(
    context: typer.Context,
    sandbox: SandboxArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be installed again and what would be lost; do nothing.")
    ] = False,
    skip: Annotated[
        bool, typer.Option("--skip", help="Leave out and name what cannot be made again, where else it fails.")
    ] = False,
    request_id: Annotated[
        str, typer.Option("--request-id", help="Makes it one upgrade, however often it is sent.", show_default=False)
    ] = "",
    output: OutputOption = None,
) -> None:
    """Upgrade the base of a sandbox's image."""
    from sandboxd.ctl.commands import upgrades

    execute(
        context,
        output,
        lambda shell: (
            upgrades.plan(shell, sandbox)
            if dry_run
            else upgrades.upgrade(shell, sandbox, skip=skip, request_id=request_id)
        ),
    )
