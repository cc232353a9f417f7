"""The verbs of clients and freelancers: names, options and help. What they do is in `commands/`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sandboxd.ctl.completion import complete_client, complete_freelancer
from sandboxd.ctl.options import OutputOption, YesOption
from sandboxd.ctl.root import app, execute, help_text

if TYPE_CHECKING:
    from sandboxd.ctl.commands.accounts import QuotaOptions

clients = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
freelancers = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(clients, name="clients", help="Manage clients (the platform).")
app.add_typer(freelancers, name="freelancers", help="Manage the freelancers of a client.")


class Text(StrEnum):
    """What is kept of texts."""

    FULL = "full"
    REDACTED = "redacted"
    NONE = "none"


ClientArgument = Annotated[
    str, typer.Argument(metavar="CLIENT", help="Id.", autocompletion=complete_client, show_default=False)
]
FreelancerArgument = Annotated[
    str, typer.Argument(metavar="FREELANCER", help="Id.", autocompletion=complete_freelancer, show_default=False)
]
NameOption = Annotated[str | None, typer.Option("--name", help="Name for people.", show_default=False)]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for people.", show_default=False)]
SandboxesOption = Annotated[
    str, typer.Option("--max-sandboxes", metavar="N|none", help="Sandboxes at once.", show_default=False)
]
TurnsOption = Annotated[str, typer.Option("--max-turns", metavar="N|none", help="Turns at once.", show_default=False)]
StorageOption = Annotated[
    str, typer.Option("--max-storage", metavar="GB|none", help="Storage of all sandboxes.", show_default=False)
]
TierOption = Annotated[
    list[str] | None,
    typer.Option("--tier", metavar="TIER|none", help="Allow this tier; may be repeated.", show_default=False),
]
EachSandboxesOption = Annotated[
    str, typer.Option("--each-sandboxes", metavar="N|none", help="Sandboxes of each freelancer.", show_default=False)
]
EachTurnsOption = Annotated[
    str, typer.Option("--each-turns", metavar="N|none", help="Turns at once of each freelancer.", show_default=False)
]
TextOption = Annotated[
    Text | None, typer.Option("--text", help="What is kept of prompts and answers.", show_default=False)
]
TextDaysOption = Annotated[
    str, typer.Option("--text-days", metavar="N|none", help="Days that texts are kept.", show_default=False)
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME|none", help="Allow this model or pattern; repeatable.", show_default=False),
]
ProofOption = Annotated[
    Path | None, typer.Option("--proof", metavar="FILE", help="Write the proof there, its signature beside it.")
]
AllOption = Annotated[bool, typer.Option("--all", "-a", help="Deleted ones, too.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the ids.")]


def _quotas(sandboxes: str, turns: str, storage: str = "", tiers: list[str] | None = None) -> QuotaOptions:
    from sandboxd.ctl.commands.accounts import QuotaOptions

    for tier in tiers or ():
        if tier not in ("basic", "standard", "premium", "none"):
            raise typer.BadParameter(f"{tier!r} is no tier.", param_hint="--tier")
    return QuotaOptions(sandboxes=sandboxes, turns=turns, storage_gb=storage, tiers=tiers or ())


@clients.command(
    "create",
    help=help_text(
        "Create a client.",
        "sandboxctl clients create acme --name 'Acme Inc.' --max-sandboxes 20 --each-turns 2",
        "sandboxctl clients create acme --text none --model 'gemini-2.5-*'",
    ),
)
def clients_create(
    context: typer.Context,
    client: ClientArgument,
    name: NameOption = None,
    text: TextOption = None,
    text_days: TextDaysOption = "",
    model: ModelsOption = None,
    max_sandboxes: SandboxesOption = "",
    max_turns: TurnsOption = "",
    max_storage: StorageOption = "",
    tier: TierOption = None,
    each_sandboxes: EachSandboxesOption = "",
    each_turns: EachTurnsOption = "",
    output: OutputOption = None,
) -> None:
    """Create a client."""
    from sandboxd.ctl.commands import accounts

    options = accounts.ClientOptions(
        name=name,
        text=text.value if text else "",
        text_days=text_days,
        models=model or (),
        quotas=_quotas(max_sandboxes, max_turns, max_storage, tier),
        each=_quotas(each_sandboxes, each_turns),
    )
    execute(context, output, lambda shell: accounts.create_client(shell, client, options))


@clients.command(
    "update",
    help=help_text(
        "Change a client. What is not said stays; `none` takes a limit away.",
        "sandboxctl clients update acme --max-sandboxes 50 --max-storage none",
    ),
)
def clients_update(
    context: typer.Context,
    client: ClientArgument,
    name: NameOption = None,
    text: TextOption = None,
    text_days: TextDaysOption = "",
    model: ModelsOption = None,
    max_sandboxes: SandboxesOption = "",
    max_turns: TurnsOption = "",
    max_storage: StorageOption = "",
    tier: TierOption = None,
    each_sandboxes: EachSandboxesOption = "",
    each_turns: EachTurnsOption = "",
    output: OutputOption = None,
) -> None:
    """Change a client."""
    from sandboxd.ctl.commands import accounts

    options = accounts.ClientOptions(
        name=name,
        text=text.value if text else "",
        text_days=text_days,
        models=model or (),
        quotas=_quotas(max_sandboxes, max_turns, max_storage, tier),
        each=_quotas(each_sandboxes, each_turns),
    )
    execute(context, output, lambda shell: accounts.update_client(shell, client, options))


@clients.command("ls", help=help_text("List clients.", "sandboxctl clients ls"))
def clients_ls(
    context: typer.Context, everything: AllOption = False, quiet: QuietOption = False, output: OutputOption = None
) -> None:
    """List clients."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.list_clients(shell, everything=everything, quiet=quiet))


@clients.command("show", help=help_text("Show one client.", "sandboxctl clients show acme"))
def clients_show(context: typer.Context, client: ClientArgument, output: OutputOption = None) -> None:
    """Show one client."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.show_client(shell, client))


@clients.command(
    "suspend",
    help=help_text(
        "Refuse everything of a client at once, and keep all it has.",
        "sandboxctl clients suspend acme --reason 'bill of May'",
    ),
)
def clients_suspend(
    context: typer.Context, client: ClientArgument, reason: ReasonOption = "", output: OutputOption = None
) -> None:
    """Suspend a client."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.suspend_client(shell, client, reason=reason))


@clients.command("reinstate", help=help_text("Bring a suspended client back.", "sandboxctl clients reinstate acme"))
def clients_reinstate(context: typer.Context, client: ClientArgument, output: OutputOption = None) -> None:
    """Bring a suspended client back."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.reinstate_client(shell, client))


@clients.command(
    "rm",
    help=help_text(
        "Erase a client for good: sandboxes with their files, images and backups, sessions, keys. It asks first, and "
        "shows the proof.",
        "sandboxctl clients rm acme --proof acme-erased.json",
    ),
)
def clients_rm(
    context: typer.Context,
    client: ClientArgument,
    yes: YesOption = False,
    proof: ProofOption = None,
    output: OutputOption = None,
) -> None:
    """Erase a client."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.delete_client(shell, client, yes=yes, proof=proof))


@clients.command("erasures", help=help_text("List the erasures of a client.", "sandboxctl clients erasures acme"))
def clients_erasures(context: typer.Context, client: ClientArgument, output: OutputOption = None) -> None:
    """List erasures."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.erasures(shell, client))


@clients.command(
    "erasure",
    help=help_text(
        "Show an erasure, and write its proof.",
        "sandboxctl clients erasure clients/acme/erasures/era-01jd --proof acme-erased.json",
    ),
)
def clients_erasure(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="ERASURE", help="Its full name.", show_default=False)],
    proof: ProofOption = None,
    output: OutputOption = None,
) -> None:
    """Show an erasure."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.erasure(shell, name, proof=proof))


@freelancers.command(
    "create",
    help=help_text("Create a freelancer.", "sandboxctl freelancers create acme ada --name 'Ada L.' --max-sandboxes 2"),
)
def freelancers_create(
    context: typer.Context,
    client: ClientArgument,
    freelancer: FreelancerArgument,
    name: NameOption = None,
    max_sandboxes: SandboxesOption = "",
    max_turns: TurnsOption = "",
    max_storage: StorageOption = "",
    tier: TierOption = None,
    output: OutputOption = None,
) -> None:
    """Create a freelancer."""
    from sandboxd.ctl.commands import accounts

    quotas = _quotas(max_sandboxes, max_turns, max_storage, tier)
    execute(
        context,
        output,
        lambda shell: accounts.create_freelancer(shell, client, freelancer, name=name or "", quotas=quotas),
    )


@freelancers.command(
    "update",
    help=help_text(
        "Change a freelancer; --as-each takes its own quotas away.",
        "sandboxctl freelancers update acme ada --max-turns 3",
    ),
)
def freelancers_update(
    context: typer.Context,
    client: ClientArgument,
    freelancer: FreelancerArgument,
    name: NameOption = None,
    max_sandboxes: SandboxesOption = "",
    max_turns: TurnsOption = "",
    max_storage: StorageOption = "",
    tier: TierOption = None,
    as_each: Annotated[bool, typer.Option("--as-each", help="The quotas that the client gives to each.")] = False,
    output: OutputOption = None,
) -> None:
    """Change a freelancer."""
    from sandboxd.ctl.commands import accounts

    quotas = _quotas(max_sandboxes, max_turns, max_storage, tier)
    execute(
        context,
        output,
        lambda shell: accounts.update_freelancer(shell, client, freelancer, name=name, quotas=quotas, as_each=as_each),
    )


@freelancers.command("ls", help=help_text("List the freelancers of a client.", "sandboxctl freelancers ls acme"))
def freelancers_ls(
    context: typer.Context,
    client: ClientArgument,
    everything: AllOption = False,
    quiet: QuietOption = False,
    output: OutputOption = None,
) -> None:
    """List freelancers."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.list_freelancers(shell, client, everything=everything, quiet=quiet))


@freelancers.command("show", help=help_text("Show one freelancer.", "sandboxctl freelancers show acme ada"))
def freelancers_show(
    context: typer.Context, client: ClientArgument, freelancer: FreelancerArgument, output: OutputOption = None
) -> None:
    """Show one freelancer."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.show_freelancer(shell, client, freelancer))


@freelancers.command(
    "suspend", help=help_text("Refuse everything of a freelancer.", "sandboxctl freelancers suspend acme ada")
)
def freelancers_suspend(
    context: typer.Context,
    client: ClientArgument,
    freelancer: FreelancerArgument,
    reason: ReasonOption = "",
    output: OutputOption = None,
) -> None:
    """Suspend a freelancer."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.suspend_freelancer(shell, client, freelancer, reason=reason))


@freelancers.command(
    "reinstate", help=help_text("Bring a suspended freelancer back.", "sandboxctl freelancers reinstate acme ada")
)
def freelancers_reinstate(
    context: typer.Context, client: ClientArgument, freelancer: FreelancerArgument, output: OutputOption = None
) -> None:
    """Bring a suspended freelancer back."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.reinstate_freelancer(shell, client, freelancer))


@freelancers.command(
    "rm",
    help=help_text(
        "Erase a freelancer for good, like a client. It asks, and shows the proof.",
        "sandboxctl freelancers rm acme ada",
    ),
)
def freelancers_rm(
    context: typer.Context,
    client: ClientArgument,
    freelancer: FreelancerArgument,
    yes: YesOption = False,
    proof: ProofOption = None,
    output: OutputOption = None,
) -> None:
    """Erase a freelancer."""
    from sandboxd.ctl.commands import accounts

    execute(context, output, lambda shell: accounts.delete_freelancer(shell, client, freelancer, yes=yes, proof=proof))
