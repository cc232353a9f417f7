"""The options that several commands share, and how global ones are taken wherever they stand."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typing_extensions import override

from sandboxd.ctl.completion import complete_any_sandbox, complete_backup_of, complete_sandbox, complete_session
from sandboxd.ctl.target import TargetOptions


class Output(StrEnum):
    """How results are written."""

    TEXT = "text"
    JSON = "json"


class Tier(StrEnum):
    """How much a sandbox may use."""

    BASIC = "basic"
    STANDARD = "standard"
    PREMIUM = "premium"


class Mode(StrEnum):
    """Approval modes."""

    DEFAULT = "default"
    AUTO_EDIT = "autoEdit"
    YOLO = "yolo"
    PLAN = "plan"


class Dimension(StrEnum):
    """What usage is added up by."""

    CLIENT = "client"
    FREELANCER = "freelancer"
    SANDBOX = "sandbox"
    SESSION = "session"
    MODEL = "model"
    DAY = "day"
    CLASS = "class"


class ResourceDimension(StrEnum):
    """What running time and storage are added up by."""

    CLIENT = "client"
    FREELANCER = "freelancer"
    SANDBOX = "sandbox"
    DAY = "day"
    TIER = "tier"
    STATE = "state"
    VOLUME = "volume"


class State(StrEnum):
    """States of a sandbox."""

    CREATING = "creating"
    ACTIVE = "active"
    HIBERNATING = "hibernating"
    HIBERNATED = "hibernated"
    WAKING = "waking"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STARTING = "starting"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    RESTORING = "restoring"
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    FAILED = "failed"


AddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        help="HOST:PORT of the service; https://HOST[:PORT] for TLS, which every host but this machine gets anyway. "
        "Without it: $SANDBOXCTL_ADDRESS, else your running `sandboxd dev`.",
        show_default=False,
    ),
]
TokenOption = Annotated[
    str,
    typer.Option(
        "--token",
        help="Bearer token. Others may see it in the list of processes: $SANDBOXCTL_TOKEN or --token-file is better.",
        show_default=False,
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="File with the token; read again when it changes. Also $SANDBOXCTL_TOKEN_FILE.",
        show_default=False,
    ),
]
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        "--ca-file",
        help="Certificates (PEM) to trust instead of the system's; asks for TLS. Also $SANDBOXCTL_CA.",
        show_default=False,
    ),
]
CertOption = Annotated[
    Path | None,
    typer.Option(
        "--cert",
        help="Client certificate (PEM) to show; asks for TLS. One of the platform's needs no token. "
        "Also $SANDBOXCTL_CERT.",
        show_default=False,
    ),
]
CertKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--cert-key",
        help="Key (PEM, no password) of the client certificate, where it is not in the same file. "
        "Also $SANDBOXCTL_CERT_KEY.",
        show_default=False,
    ),
]
ForClientOption = Annotated[
    str,
    typer.Option(
        "--for-client",
        metavar="CLIENT",
        help="Act for this client: for the platform, whose certificate or token belongs to none. "
        "Also $SANDBOXCTL_FOR_CLIENT.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Output | None,
    typer.Option(
        "--output",
        "-o",
        help="text for people, json for programs: one JSON object a line, errors too (on stderr).  [default: text]",
        show_default=False,
    ),
]
SandboxArgument = Annotated[
    str,
    typer.Argument(
        metavar="SANDBOX",
        help="Id, display name, or the unique beginning of one.",
        autocompletion=complete_sandbox,
        show_default=False,
    ),
]
AnySandboxArgument = Annotated[
    str,
    typer.Argument(
        metavar="SANDBOX",
        help="Id, display name, or the unique beginning of one; also of one that is terminated.",
        autocompletion=complete_any_sandbox,
        show_default=False,
    ),
]
SandboxOption = Annotated[
    str,
    typer.Option("--sandbox", help="Only this sandbox.", autocompletion=complete_any_sandbox, show_default=False),
]
SessionArgument = Annotated[
    str,
    typer.Argument(
        metavar="SESSION",
        help="Id or its unique beginning, title, or SANDBOX/last for the newest of a sandbox.",
        autocompletion=complete_session,
        show_default=False,
    ),
]
SessionOption = Annotated[
    str,
    typer.Option(
        "--session",
        "-s",
        help="Continue this session: id or its unique beginning, title, or `last`. Without it a new one begins.",
        autocompletion=complete_session,
        show_default=False,
    ),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", metavar="KEY=VALUE", help="A label; may be repeated.", show_default=False),
]
StateOption = Annotated[
    list[State] | None,
    typer.Option("--state", help="Only this state; may be repeated.", case_sensitive=False, show_default=False),
]
FreelancerOption = Annotated[str, typer.Option("--freelancer", help="Only this freelancer.", show_default=False)]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Longest wait.")]
ThoughtsOption = Annotated[
    bool, typer.Option("--thoughts/--no-thoughts", help="Show the model's thinking.", show_default=True)
]
ModelOption = Annotated[
    str, typer.Option("--model", help="Model, for example gemini-2.5-flash; else the CLI chooses.", show_default=False)
]
ModeOption = Annotated[
    Mode | None,
    typer.Option(
        "--mode",
        help="Approval mode: default asks before tools that change things, autoEdit lets edits pass, yolo asks "
        "nothing, plan only reads.",
        show_default=False,
    ),
]
FromBackupOption = Annotated[
    str,
    typer.Option(
        "--from-backup",
        metavar="SANDBOX[/BACKUP]",
        help="Begin with what a sandbox's backup has: its newest, or the one whose id ends so.",
        autocompletion=complete_backup_of,
        show_default=False,
    ),
]
WorkspaceOnlyOption = Annotated[
    bool,
    typer.Option(
        "--workspace-only", help="Of the backup the workspace alone; of another freelancer's nothing else may come."
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Globals:
    """What was said before the command; commands read it from the context."""

    def __init__(self, target: TargetOptions, output: Output) -> None:
        self.target = target
        self.output = output


def target_of(context: typer.Context) -> TargetOptions:
    """Return the connection options of this command line."""
    found = context.find_object(Globals)
    return found.target if found else TargetOptions()


def is_json(context: typer.Context, output: Output | None) -> bool:
    """Tell whether results are for programs."""
    found = context.find_object(Globals)
    return (output or (found.output if found else Output.TEXT)) is Output.JSON


def parse_labels(pairs: Sequence[str] | None) -> dict[str, str]:
    """Split labels.

    Raises:
        typer.BadParameter: One has no `=`.
    """
    labels = dict[str, str]()
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{pair!r} is no KEY=VALUE.", param_hint="--label")
        labels[key] = value
    return labels


_ANYWHERE = (
    "--address",
    "--token",
    "--token-file",
    "--ca",
    "--ca-file",
    "--cert",
    "--cert-key",
    "--for-client",
)

ORDER: Final = (
    *("create", "ls", "show", "watch", "prompt", "chat", "sessions", "history"),
    *("update", "pause", "resume", "rm", "packages", "commit", "images", "rollback", "upgrade", "sbom"),
    *("backups", "restore", "usage", "budgets", "prices", "clients", "freelancers", "keys", "pools", "audit", "admin"),
    "completion",
)
"""Of commands in the help: what one does first stands first. What is not named stands at the end."""


class Root(TyperGroup):
    """The command group: takes connection options wherever they stand, and tells usage errors as JSON where asked."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Any: typer keeps the type to itself
        return super().parse_args(ctx, hoist(args))

    @override
    def list_commands(self, ctx: Any) -> list[str]:  # Any: as above
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    @override
    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:  # Any: typer's signature
        given = list(sys.argv[1:] if args is None else args)
        if not asks_for_json(given) or extra.get("standalone_mode") is False:
            return super().main(args, *rest, **extra)
        try:
            code = super().main(args, *rest, **{**extra, "standalone_mode": False})
        except TyperException as error:
            told = {"code": "", "reason": "USAGE", "message": error.format_message(), "exit_code": error.exit_code}
            sys.stderr.write(json.dumps({"error": told}) + "\n")
            code = error.exit_code
        sys.exit(code if isinstance(code, int) else 0)


def hoist(args: Sequence[str]) -> list[str]:
    """Move the connection options to the front; what follows `--` stays."""
    front, rest = list[str](), list[str]()
    waiting = iter(args)
    for word in waiting:
        if word == "--":
            return [*front, *rest, word, *waiting]
        if word in _ANYWHERE:
            front += [word, *[value for value in (next(waiting, None),) if value is not None]]
        elif word.partition("=")[0] in _ANYWHERE and "=" in word:
            front.append(word)
        else:
            rest.append(word)
    return [*front, *rest]


def asks_for_json(args: Sequence[str]) -> bool:
    """Tell from the raw words whether output is to be JSON, for errors that come before they are parsed."""
    words = [*args[: args.index("--")]] if "--" in args else [*args]
    pairs = pairwise([*words, ""])
    joined = ("--output=json", "-o=json", "-ojson")
    return any(word in joined or (word in ("--output", "-o") and value == "json") for word, value in pairs)
