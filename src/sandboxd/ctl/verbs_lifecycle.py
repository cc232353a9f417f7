"""The verbs about when sandboxes rest, and what of a sandbox can be changed: names, options and help."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sandboxd.ctl.options import ModeOption, OutputOption, SandboxArgument, Tier, TimeoutOption
from sandboxd.ctl.root import app, execute, help_text, mode_name
from sandboxd.ctl.verbs_accounts import ClientArgument, clients


class Choice(StrEnum):
    """Yes, no, or what is decided above."""

    YES = "yes"
    NO = "no"
    DEFAULT = "default"


_SPAN = "SPAN|never|default"
HibernateOption = Annotated[
    str,
    typer.Option("--hibernate-after", metavar=_SPAN, help="Freeze it when idle so long: 90s, 15m.", show_default=False),
]
StopOption = Annotated[
    str,
    typer.Option("--stop-after", metavar=_SPAN, help="Release its compute when idle so long.", show_default=False),
]
TerminateOption = Annotated[
    str,
    typer.Option("--terminate-after", metavar=_SPAN, help="Terminate it when idle so long.", show_default=False),
]
PausedOption = Annotated[
    str,
    typer.Option(
        "--terminate-paused-after", metavar=_SPAN, help="Terminate it when paused so long.", show_default=False
    ),
]
DiscardOption = Annotated[
    Choice | None,
    typer.Option(
        "--discard-root",
        help="Let policy stop it although its root file system may have changed; home and workspace stay.",
        show_default=False,
    ),
]


@app.command(
    help=help_text(
        "Change a sandbox. What is not said stays; `default` takes a wish of its own away.",
        "sandboxctl update demo --name prod --tier standard",
        "sandboxctl update demo --hibernate-after 1h --stop-after never",
        "sandboxctl update demo --keep-awake 2h",
    )
)
def update(
    context: typer.Context,
    sandbox: SandboxArgument,
    name: Annotated[str | None, typer.Option("--name", help="Name for people.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option("--model", help="Model of new sessions.", show_default=False)] = None,
    mode: ModeOption = None,
    tier: Annotated[
        Tier | None, typer.Option("--tier", help="How much it may use; volumes never shrink.", show_default=False)
    ] = None,
    hibernate_after: HibernateOption = "",
    stop_after: StopOption = "",
    terminate_after: TerminateOption = "",
    terminate_paused_after: PausedOption = "",
    discard_root: DiscardOption = None,
    keep_awake: Annotated[
        str, typer.Option("--keep-awake", metavar="SPAN|no", help="Count as used so long from now.", show_default=False)
    ] = "",
    timeout: TimeoutOption = 180.0,
    output: OutputOption = None,
) -> None:
    """Change a sandbox."""
    from sandboxd.ctl.commands import lifecycle

    options = lifecycle.UpdateOptions(
        name=name,
        model=model,
        mode=mode_name(mode),
        tier=tier.value if tier else "",
        rests=lifecycle.RestOptions(
            hibernate_after=hibernate_after,
            stop_after=stop_after,
            terminate_after=terminate_after,
            terminate_paused_after=terminate_paused_after,
            discard_root=discard_root.value if discard_root else "",
        ),
        keep_awake=keep_awake,
        timeout=timeout,
    )
    execute(context, output, lambda shell: lifecycle.update(shell, sandbox, options))


@clients.command(
    "rests",
    help=help_text(
        "Change when a client's sandboxes rest. What is not said stays; `default` takes the installation's.",
        "sandboxctl clients rests acme --hibernate-after 30m --terminate-after 7d",
    ),
)
def clients_rests(
    context: typer.Context,
    client: ClientArgument,
    hibernate_after: HibernateOption = "",
    stop_after: StopOption = "",
    terminate_after: TerminateOption = "",
    terminate_paused_after: PausedOption = "",
    discard_root: DiscardOption = None,
    output: OutputOption = None,
) -> None:
    """Change when a client's sandboxes rest."""
    from sandboxd.ctl.commands import lifecycle

    rests = lifecycle.RestOptions(
        hibernate_after=hibernate_after,
        stop_after=stop_after,
        terminate_after=terminate_after,
        terminate_paused_after=terminate_paused_after,
        discard_root=discard_root.value if discard_root else "",
    )
    execute(context, output, lambda shell: lifecycle.client_rests(shell, client, rests))
