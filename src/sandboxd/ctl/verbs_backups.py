"""The verbs of backups: names, options and help. What they do is in `commands/backups.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from sandboxd.ctl.completion import complete_backup, complete_backup_of, complete_sandbox
from sandboxd.ctl.options import AnySandboxArgument, OutputOption, WorkspaceOnlyOption, YesOption
from sandboxd.ctl.root import app, execute, help_text
from sandboxd.ctl.verbs_accounts import ClientArgument, clients

backups = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(backups, name="backups", help="What sandboxes are rebuilt from: image, home and workspace.")

BackupArgument = Annotated[
    str,
    typer.Argument(
        metavar="BACKUP",
        help="Its id, or enough of its end, as `ls` shows it.",
        autocompletion=complete_backup,
        show_default=False,
    ),
]


@backups.command(
    "create",
    help=help_text(
        "Back a sandbox up, in whatever state it is. Ctrl-C cancels; pressed again it leaves.",
        "sandboxctl backups create demo",
        "sandboxctl backups create demo --freeze --freeze-for 20s",
        "backup=$(sandboxctl backups create demo --output json | jq -r .name)",
    ),
)
def create_backup(
    context: typer.Context,
    sandbox: AnySandboxArgument,
    request_id: Annotated[
        str, typer.Option("--request-id", help="Makes it one backup, however often it is sent.", show_default=False)
    ] = "",
    freeze: Annotated[
        bool,
        typer.Option(
            "--freeze",
            help="Let a running one stand still for a moment, so that the backup is of one; fails where it cannot.",
        ),
    ] = False,
    or_running: Annotated[
        bool, typer.Option("--or-running", help="With --freeze: where it cannot, take it as it runs.")
    ] = False,
    freeze_for: Annotated[
        str,
        typer.Option(
            "--freeze-for", metavar="SPAN", help="With --freeze: so long at most, 60s by itself.", show_default=False
        ),
    ] = "",
    output: OutputOption = None,
) -> None:
    """Back a sandbox up."""
    from sandboxd.ctl.commands import backups as command

    execute(
        context,
        output,
        lambda shell: command.create(
            shell, sandbox, request_id=request_id, freeze=freeze, or_running=or_running, freeze_for=freeze_for
        ),
    )


@backups.command(
    "follow",
    help=help_text(
        "Follow the backup of a sandbox that is being made. Ctrl-C cancels it; pressed again it leaves.",
        "sandboxctl backups follow demo",
    ),
)
def follow_backup(context: typer.Context, sandbox: AnySandboxArgument, output: OutputOption = None) -> None:
    """Follow a backup."""
    from sandboxd.ctl.commands import backups as command

    execute(context, output, lambda shell: command.follow(shell, sandbox))


@backups.command(
    "cancel",
    help=help_text("End the backup of a sandbox that is being made.", "sandboxctl backups cancel demo"),
)
def cancel_backup(context: typer.Context, sandbox: AnySandboxArgument, output: OutputOption = None) -> None:
    """Cancel a backup."""
    from sandboxd.ctl.commands import backups as command

    execute(context, output, lambda shell: command.cancel(shell, sandbox))


@backups.command(
    "ls",
    help=help_text(
        "List a sandbox's backups, the newest first; also of one that is terminated.",
        "sandboxctl backups ls demo",
        "sandboxctl backups ls demo --all --output json | jq -r .deletion",
    ),
)
def list_backups(
    context: typer.Context,
    sandbox: AnySandboxArgument,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that are gone, too.")] = False,
    output: OutputOption = None,
) -> None:
    """List backups."""
    from sandboxd.ctl.commands import backups as command

    execute(context, output, lambda shell: command.ls(shell, sandbox, everything=everything))


@backups.command("show", help=help_text("Show one backup.", "sandboxctl backups show demo 8f3k2m"))
def show_backup(
    context: typer.Context, sandbox: AnySandboxArgument, backup: BackupArgument, output: OutputOption = None
) -> None:
    """Show a backup."""
    from sandboxd.ctl.commands import backups as command

    execute(context, output, lambda shell: command.show(shell, sandbox, backup))


@backups.command(
    "rm",
    help=help_text(
        "Delete a backup for good, with all content that no other one needs. Answers how it is known that it is gone.",
        "sandboxctl backups rm demo 8f3k2m",
        "sandboxctl backups rm demo 8f3k2m --give-up   # the only one, of a sandbox whose volumes were released",
    ),
)
def remove_backup(
    context: typer.Context,
    sandbox: AnySandboxArgument,
    backup: BackupArgument,
    give_up: Annotated[
        bool, typer.Option("--give-up", help="Also where it is all that is left of the sandbox.")
    ] = False,
    yes: YesOption = False,
    output: OutputOption = None,
) -> None:
    """Delete a backup."""
    from sandboxd.ctl.commands import backups as command

    execute(context, output, lambda shell: command.rm(shell, sandbox, backup, yes=yes, give_up=give_up))


_COUNT = "N|default"


@clients.command(
    "backups",
    help=help_text(
        "Change how often a client's sandboxes are backed up and which backups are kept. What is not said stays; "
        "`default` takes the installation's. A window of immutability holds for backups that are taken from then on.",
        "sandboxctl clients backups acme --every 12h --keep-daily 14",
        "sandboxctl clients backups acme --immutable-for 30d",
        "sandboxctl clients backups acme --every never --immutable-for default",
    ),
)
def clients_backups(
    context: typer.Context,
    client: ClientArgument,
    every: Annotated[
        str,
        typer.Option(
            "--every",
            metavar="SPAN|never|default",
            help="How old the newest backup of a sandbox that is used may become: 12h, 1d.",
            show_default=False,
        ),
    ] = "",
    keep_last: Annotated[
        str, typer.Option("--keep-last", metavar=_COUNT, help="Keep so many newest ones.", show_default=False)
    ] = "",
    keep_daily: Annotated[
        str,
        typer.Option(
            "--keep-daily", metavar=_COUNT, help="And the newest of each of so many days.", show_default=False
        ),
    ] = "",
    keep_weekly: Annotated[
        str,
        typer.Option(
            "--keep-weekly", metavar=_COUNT, help="And the newest of each of so many weeks.", show_default=False
        ),
    ] = "",
    immutable_for: Annotated[
        str,
        typer.Option(
            "--immutable-for",
            metavar="SPAN|no|default",
            help="Nothing deletes a backup so long after it is complete, whoever asks, except an erasure: 30d.",
            show_default=False,
        ),
    ] = "",
    output: OutputOption = None,
) -> None:
    """Change what holds for a client's backups."""
    from sandboxd.ctl.commands import backup_policies

    options = backup_policies.BackupOptions(
        every=every,
        keep_last=keep_last,
        keep_daily=keep_daily,
        keep_weekly=keep_weekly,
        immutable_for=immutable_for,
    )
    execute(context, output, lambda shell: backup_policies.client_backups(shell, client, options))


@backups.command(
    "drill",
    help=help_text(
        "Try a restore: bring a backup back into a sandbox that is nobody's, boot it, compare every file, destroy it. "
        "For the platform. Without a sandbox: the one whose turn it is.",
        "sandboxctl backups drill",
        "sandboxctl backups drill demo/8f3k2m",
    ),
)
def drill_backup(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="[SANDBOX[/BACKUP]]",
            help="Of this sandbox the newest backup, or the one whose id ends so.",
            autocompletion=complete_backup_of,
            show_default=False,
        ),
    ] = "",
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="How long to wait; the drill goes on.")
    ] = 1800,
    output: OutputOption = None,
) -> None:
    """Try a restore."""
    from sandboxd.ctl.commands import drills as command

    execute(context, output, lambda shell: command.run(shell, source, timeout=timeout))


@backups.command(
    "drills",
    help=help_text(
        "List restores that were tried, the newest first, and what they came to.",
        "sandboxctl backups drills",
        "sandboxctl backups drills --limit 1 --output json | jq -r .status",
    ),
)
def list_drills(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 50,
    output: OutputOption = None,
) -> None:
    """List drills."""
    from sandboxd.ctl.commands import drills as command

    execute(context, output, lambda shell: command.ls(shell, limit=limit))


@app.command(
    help=help_text(
        "Bring a terminated, stopped or paused sandbox back to what a backup has, and start it. What its volumes have "
        "now is backed up first. Or bring it into another sandbox, or a new one. Ctrl-C cancels; pressed again it "
        "leaves.",
        "sandboxctl restore demo",
        "sandboxctl restore demo 8f3k2m",
        "sandboxctl restore demo 8f3k2m --path workspace:src/main.py --path home:.bashrc",
        "sandboxctl restore demo --into copy-of-demo",
        "sandboxctl restore demo --cancel",
    )
)
def restore(
    context: typer.Context,
    sandbox: AnySandboxArgument,
    backup: Annotated[
        str,
        typer.Argument(
            metavar="BACKUP",
            help="Its id, or enough of its end. Without one, of a terminated sandbox: what it ended with; with --into "
            "the newest.",
            autocompletion=complete_backup,
            show_default=False,
        ),
    ] = "",
    into: Annotated[
        str,
        typer.Option(
            "--into",
            metavar="SANDBOX",
            help="Another sandbox of the client, terminated, stopped or paused; or else the name of a new one.",
            autocompletion=complete_sandbox,
            show_default=False,
        ),
    ] = "",
    workspace_only: WorkspaceOnlyOption = False,
    path: Annotated[
        list[str] | None,
        typer.Option("--path", metavar="VOLUME:PATH", help="This alone; may be repeated.", show_default=False),
    ] = None,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Begin nothing; end the restore that is at work: all is as it was.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="How long to wait; the work goes on.")
    ] = 600,
    output: OutputOption = None,
) -> None:
    """Restore a sandbox."""
    from sandboxd.ctl.commands import backups as command

    if cancel:
        if backup or into or path or workspace_only:
            raise typer.BadParameter("--cancel begins nothing: say the sandbox alone.")
        execute(context, output, lambda shell: command.cancel_restore(shell, sandbox))
        return

    options = command.RestoreOptions(
        backup=backup, paths=path or [], into=into, workspace_only=workspace_only, timeout=timeout
    )
    execute(context, output, lambda shell: command.restore(shell, sandbox, options))
