"""The verbs of API keys: names, options and help. What they do is in `commands/`, imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandboxd.ctl.options import OutputOption, YesOption
from sandboxd.ctl.root import app, execute, help_text
from sandboxd.ctl.verbs_accounts import ClientArgument

keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys, name="keys", help="Manage the clients' API keys; a key is never shown.")

KeyFileOption = Annotated[
    Path | None, typer.Option("--from-file", metavar="FILE", help="File that holds the key.", show_default=False)
]
KeyStdinOption = Annotated[bool, typer.Option("--from-stdin", help="Read the key from stdin.")]


@keys.command(
    "set",
    help=help_text(
        "Give a client its API key. The key is read from a file or from stdin, never from the command line.",
        "sandboxctl keys set acme --from-file key.txt",
        "pass show acme/gemini | sandboxctl keys set acme --from-stdin",
    ),
)
def keys_set(
    context: typer.Context,
    client: ClientArgument,
    from_file: KeyFileOption = None,
    from_stdin: KeyStdinOption = False,
    output: OutputOption = None,
) -> None:
    """Set a key."""
    from sandboxd.ctl.commands import keys as command

    key = _key(from_file, from_stdin=from_stdin)
    execute(context, output, lambda shell: command.set_key(shell, client, key))


@keys.command(
    "rotate",
    help=help_text(
        "Replace a client's API key. The old one stands in for a while where the API refuses the new one.",
        "sandboxctl keys rotate acme --from-file new-key.txt --grace 120",
    ),
)
def keys_rotate(
    context: typer.Context,
    client: ClientArgument,
    from_file: KeyFileOption = None,
    from_stdin: KeyStdinOption = False,
    grace: Annotated[int, typer.Option("--grace", min=0, max=43_200, metavar="MINUTES", help="For so long.")] = 60,
    output: OutputOption = None,
) -> None:
    """Replace a key."""
    from sandboxd.ctl.commands import keys as command

    key = _key(from_file, from_stdin=from_stdin)
    execute(context, output, lambda shell: command.rotate_key(shell, client, key, grace_minutes=grace))


@keys.command(
    "revoke", help=help_text("Drop a client's API key, within seconds. It asks first.", "sandboxctl keys revoke acme")
)
def keys_revoke(
    context: typer.Context, client: ClientArgument, yes: YesOption = False, output: OutputOption = None
) -> None:
    """Revoke a key."""
    from sandboxd.ctl.commands import keys as command

    execute(context, output, lambda shell: command.revoke_key(shell, client, yes=yes))


@keys.command("ls", help=help_text("Show what is known of a client's keys.", "sandboxctl keys ls acme"))
def keys_ls(context: typer.Context, client: ClientArgument, output: OutputOption = None) -> None:
    """List keys."""
    from sandboxd.ctl.commands import keys as command

    execute(context, output, lambda shell: command.list_keys(shell, client))


def _key(from_file: Path | None, *, from_stdin: bool) -> str:
    from sandboxd.ctl.commands.accounts import read_key
    from sandboxd.ctl.shell import UsageError

    try:
        return read_key(from_file, stdin=from_stdin)
    except UsageError as error:
        raise typer.BadParameter(str(error), param_hint="--from-file") from error
