"""The verbs of sandboxes: names, options and help. What they do is in `commands/`, imported when one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from sandboxd.ctl.completion import complete_sandbox
from sandboxd.ctl.options import (
    AnySandboxArgument,
    FreelancerOption,
    FromBackupOption,
    LabelOption,
    ModelOption,
    ModeOption,
    OutputOption,
    SandboxArgument,
    StateOption,
    Tier,
    TimeoutOption,
    WorkspaceOnlyOption,
    YesOption,
    parse_labels,
)
from sandboxd.ctl.root import app, execute, help_text, mode_name


@app.command(
    help=help_text(
        "Create a sandbox and wait until it is ready.",
        "sandboxctl create --name demo",
        "sandboxctl create --name copy --from-backup demo",
        "sandboxctl create --from-backup demo/8f3k2m --workspace-only --freelancer bob",
        "sandboxctl create --freelancer ada --label project=web --tier standard --model gemini-2.5-flash",
        "id=$(sandboxctl create --quiet)",
    )
)
def create(
    context: typer.Context,
    name: Annotated[str, typer.Option("--name", help="Name for people.", show_default=False)] = "",
    freelancer: Annotated[
        str, typer.Option("--freelancer", help="Who works in it; else the token's subject.", show_default=False)
    ] = "",
    label: LabelOption = None,
    tier: Annotated[
        Tier | None,
        typer.Option("--tier", help="How much it may use.  [default: basic, or the backup's]", show_default=False),
    ] = None,
    model: ModelOption = "",
    mode: ModeOption = None,
    from_backup: FromBackupOption = "",
    workspace_only: WorkspaceOnlyOption = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Tell on stderr that it is waiting, also without a terminal.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the id.")] = False,
    request_id: Annotated[
        str, typer.Option("--request-id", help="Makes it one sandbox, however often it is sent.", show_default=False)
    ] = "",
    timeout: TimeoutOption = 180.0,
    output: OutputOption = None,
) -> None:
    """Create a sandbox."""
    from sandboxd.ctl.commands import sandboxes

    options = sandboxes.CreateOptions(
        name=name,
        freelancer=freelancer,
        labels=parse_labels(label),
        tier=tier.value if tier else "",
        model=model,
        from_backup=from_backup,
        workspace_only=workspace_only,
        mode=mode_name(mode),
        request_id=request_id,
        timeout=timeout,
        progress=wait,
        quiet=quiet,
    )
    execute(context, output, lambda shell: sandboxes.create(shell, options))


@app.command(
    help=help_text(
        "List sandboxes; terminated ones only where asked for.",
        "sandboxctl ls",
        "sandboxctl ls --state active --state hibernated --label project=web",
        "sandboxctl ls --all --output json | jq -r .name",
    )
)
def ls(
    context: typer.Context,
    state: StateOption = None,
    label: LabelOption = None,
    freelancer: FreelancerOption = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Terminated ones, too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the ids.")] = False,
    output: OutputOption = None,
) -> None:
    """List sandboxes."""
    from sandboxd.ctl.commands import sandboxes

    states, labels = [each.value for each in state or ()], parse_labels(label)
    execute(
        context,
        output,
        lambda shell: sandboxes.ls(
            shell, states=states, freelancer=freelancer, labels=labels, everything=everything, quiet=quiet
        ),
    )


@app.command(
    help=help_text("Show one sandbox and its newest sessions.", "sandboxctl show demo", "sandboxctl show demo -o json")
)
def show(context: typer.Context, sandbox: AnySandboxArgument, output: OutputOption = None) -> None:
    """Show one sandbox."""
    from sandboxd.ctl.commands import sandboxes

    execute(context, output, lambda shell: sandboxes.show(shell, sandbox))


@app.command(
    help=help_text(
        "Release a sandbox's compute and keep its files. Only `resume` brings it back.",
        "sandboxctl pause demo",
        "sandboxctl pause demo --force",
    )
)
def pause(
    context: typer.Context,
    sandbox: SandboxArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Even in the middle of a turn, and where what was installed cannot be kept.")
    ] = False,
    timeout: TimeoutOption = 180.0,
    output: OutputOption = None,
) -> None:
    """Pause a sandbox."""
    from sandboxd.ctl.commands import sandboxes

    execute(context, output, lambda shell: sandboxes.pause(shell, sandbox, force=force, timeout=timeout))


@app.command(help=help_text("Bring a paused or failed sandbox back.", "sandboxctl resume demo"))
def resume(
    context: typer.Context, sandbox: SandboxArgument, timeout: TimeoutOption = 180.0, output: OutputOption = None
) -> None:
    """Resume a sandbox."""
    from sandboxd.ctl.commands import sandboxes

    execute(context, output, lambda shell: sandboxes.resume(shell, sandbox, timeout=timeout))


@app.command(
    help=help_text(
        "Terminate sandboxes. It asks before each one; the answer says where the files were kept.",
        "sandboxctl rm demo",
        "sandboxctl ls --label ci=1 -q | xargs sandboxctl rm --yes",
    )
)
def rm(
    context: typer.Context,
    sandbox: Annotated[
        list[str],
        typer.Argument(metavar="SANDBOX…", autocompletion=complete_sandbox, show_default=False),
    ],
    yes: YesOption = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even where what was installed cannot be kept as an image.")
    ] = False,
    timeout: TimeoutOption = 180.0,
    output: OutputOption = None,
) -> None:
    """Terminate sandboxes."""
    from sandboxd.ctl.commands import sandboxes

    execute(context, output, lambda shell: sandboxes.rm(shell, sandbox, yes=yes, force=force, timeout=timeout))


@app.command(
    help=help_text(
        "Watch sandboxes change: a live table, or a line for each change without a terminal. Ctrl-C leaves.",
        "sandboxctl watch",
        "sandboxctl watch --label project=web -o json",
    )
)
def watch(
    context: typer.Context,
    state: StateOption = None,
    label: LabelOption = None,
    freelancer: FreelancerOption = "",
    output: OutputOption = None,
) -> None:
    """Watch sandboxes."""
    from sandboxd.ctl.commands import watch as command

    states, labels = [each.value for each in state or ()], parse_labels(label)
    execute(context, output, lambda shell: command.watch(shell, states=states, freelancer=freelancer, labels=labels))


@app.command(help=help_text("Say how the shell learns to complete commands and names.", "sandboxctl completion"))
def completion() -> None:
    """Tell how to install completion."""
    typer.echo(
        "Once, for the shell you are in (it adds a line to its start file):\n"
        "  sandboxctl --install-completion\n"
        "Or by hand, from the shell it is for, for example bash:\n"
        "  sandboxctl --show-completion >> ~/.bashrc\n"
        "Then open a new shell. Names are completed, too, where the service answers: of sandboxes, sessions, images, "
        "backups, clients, freelancers, and of what is abandoned."
    )
