"""The verbs of the audit: names, options and help. What they do is in `commands/audit.py`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sandboxd.ctl.options import OutputOption, is_json
from sandboxd.ctl.root import app, execute, help_text

audit = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(audit, name="audit", help="Read what is on record: list, verify, export.")

ClientOption = Annotated[
    str, typer.Option("--client", help="Chain of this client (the platform); else one's own.", show_default=False)
]
SystemOption = Annotated[bool, typer.Option("--system", help="The system's chain (the platform).")]


class Kind(StrEnum):
    """Kinds of entries."""

    INTENT = "intent"
    OUTCOME = "outcome"
    DENIED = "denied"


@audit.command(
    "ls",
    help=help_text(
        "List entries, the newest first.\n\n"
        "An INTENT says who was about to do what; its OUTCOME names it by its number, and how it ended.",
        "sandboxctl audit ls --since 24h",
        "sandboxctl audit ls --kind denied --actor ada",
        "sandboxctl audit ls --target sandboxes/sbx-01jd2m… --limit 0 -o json",
        "sandboxctl audit ls --action SandboxService/Terminate --code OK",
    ),
)
def ls(
    context: typer.Context,
    since: Annotated[str, typer.Option(help="From here on: 2026-11-23, today, 24h.", show_default=False)] = "",
    until: Annotated[str, typer.Option(help="Before this moment.", show_default=False)] = "",
    actor: Annotated[str, typer.Option(help="Who did it: the token's subject.", show_default=False)] = "",
    action: Annotated[
        str, typer.Option(help="What: SandboxService/Create; or the beginning of it.", show_default=False)
    ] = "",
    target: Annotated[str, typer.Option(help="On this resource, and what is in it.", show_default=False)] = "",
    request_id: Annotated[str, typer.Option("--request-id", help="Of this request.", show_default=False)] = "",
    kind: Annotated[list[Kind] | None, typer.Option("--kind", help="Of this kind; repeatable.")] = None,
    code: Annotated[
        list[str] | None, typer.Option("--code", help="With this gRPC code, by its name; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="At most so many; 0 for all.")] = 50,
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="In the order of the chain.")] = False,
    client: ClientOption = "",
    system: SystemOption = False,
    output: OutputOption = None,
) -> None:
    """List entries."""
    from sandboxd.ctl.commands import audit as command

    options = command.ListOptions(
        chain=command.chain_of(client, system=system),
        since=since,
        until=until,
        actor=actor,
        action=action,
        target=target,
        request_id=request_id,
        kinds=[one.value for one in kind or ()],
        codes=code or (),
        limit=limit,
        oldest_first=oldest_first,
    )
    execute(context, output, lambda shell: command.show(shell, options))


@audit.command(
    help=help_text(
        "Check a chain: on the service, or an export with no server.\n\n"
        "Exit code 0: all is as it was written; 1: it is not, and each finding names the entry. An export is checked "
        "with the service's public key, which you have from the service's operator, not from the export "
        "(keys/audit in the data directory); and, with --heads, against heads that were kept elsewhere.",
        "sandboxctl audit verify",
        "sandboxctl audit verify acme.jsonl --key audit-key.pem",
        "sandboxctl audit verify acme.jsonl --key keys/ --heads audit-heads/ -o json",
    )
)
def verify(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="An export.", show_default=False)] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", help="Public key (PEM), or a directory of them; repeatable.", show_default=False),
    ] = None,
    keys_in_file: Annotated[
        bool, typer.Option("--keys-in-file", help="Use the keys in FILE: finds accidents, proves nothing.")
    ] = False,
    heads: Annotated[
        list[Path] | None,
        typer.Option("--heads", help="Signed heads kept elsewhere: a file, or a directory; repeatable."),
    ] = None,
    first: Annotated[int, typer.Option("--from", min=0, help="Begin with this entry (without FILE).")] = 0,
    client: ClientOption = "",
    system: SystemOption = False,
    output: OutputOption = None,
) -> None:
    """Check a chain."""
    from sandboxd.ctl.commands import audit as command

    if file is None:
        if key or keys_in_file or heads:
            raise typer.BadParameter("the service has its own keys and heads; these are for a FILE", param_hint="--key")
        chain = command.chain_of(client, system=system)
        execute(context, output, lambda shell: command.verify(shell, chain, first=first))
        return
    if bool(key) == keys_in_file:
        raise typer.BadParameter("name the public key of the service, or say --keys-in-file", param_hint="--key")
    options = command.FileOptions(file=file, keys=key or (), keys_in_file=keys_in_file, heads=heads or ())
    command.verify_file(options, as_json=is_json(context, output))


@audit.command(
    help=help_text(
        "Write a chain, with what is needed to verify it offline: one JSON object a line, a signed seal at the end.",
        "sandboxctl audit export --file acme.jsonl",
        "sandboxctl audit export --file acme.jsonl --resume",
        "sandboxctl audit export --system --from 5000 > system-5000.jsonl",
    )
)
def export(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Where to; stdout if not given.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a file that was interrupted, or bring it up to date.")
    ] = False,
    first: Annotated[int, typer.Option("--from", min=0, help="Begin with this entry.")] = 0,
    without_texts: Annotated[bool, typer.Option("--without-texts", help="Leave personal texts out.")] = False,
    client: ClientOption = "",
    system: SystemOption = False,
    output: OutputOption = None,
) -> None:
    """Export a chain."""
    from sandboxd.ctl.commands import audit as command

    options = command.ExportOptions(
        chain=command.chain_of(client, system=system),
        file=file,
        first=first,
        resume=resume,
        without_texts=without_texts,
    )
    execute(context, output, lambda shell: command.export(shell, options))
