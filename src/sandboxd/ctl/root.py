"""The root of the command line, and how a command is hung into it.

Help is plain text: typer's coloured help imports half of rich, and takes twice as long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import typer

from sandboxd.ctl.options import (
    AddressOption,
    CaOption,
    CertKeyOption,
    CertOption,
    ForClientOption,
    Globals,
    Mode,
    Output,
    OutputOption,
    Root,
    TokenFileOption,
    TokenOption,
    is_json,
    target_of,
)
from sandboxd.ctl.target import TargetOptions, TlsOptions

if TYPE_CHECKING:
    from sandboxd.ctl.exits import Exit
    from sandboxd.ctl.shell import Shell

EXIT_CODES = """\b
Exit codes:
  0 done                                  5 the service does not answer, or not in time
  1 the operation or the turn failed      6 the present state does not allow it
  2 wrong command line or argument        7 a permission was refused, or the model refused
  3 not found                           130 interrupted
  4 no token, or one that may not do it"""


app = typer.Typer(
    cls=Root,
    name="sandboxctl",
    help="Create sandboxes with Gemini CLI in them, talk to it, and see what it costs.\n\n"
    "A sandbox or session may be named by its id, its display name or title, or the unique beginning of one.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def _root(
    context: typer.Context,
    address: AddressOption = "",
    token: TokenOption = "",
    token_file: TokenFileOption = None,
    ca_file: CaOption = None,
    cert: CertOption = None,
    cert_key: CertKeyOption = None,
    for_client: ForClientOption = "",
    output: OutputOption = None,
) -> None:
    target = TargetOptions(
        address=address,
        token=token,
        token_file=token_file,
        tls=TlsOptions(ca_file=ca_file, cert_file=cert, cert_key_file=cert_key),
        for_client=for_client,
    )
    context.obj = Globals(target, output or Output.TEXT)


def help_text(what: str, *examples: str) -> str:
    """Write a command's help: what it does, then examples on lines of their own."""
    lines = "\n".join(f"  {each}" for each in examples)
    return f"{what}\n\n\b\nExamples:\n{lines}"


def execute(context: typer.Context, output: Output | None, work: Callable[[Shell], Awaitable[Exit]]) -> None:
    """Run a command and end the process with its exit code."""
    from sandboxd.ctl.shell import run

    run(target_of(context), work, as_json=is_json(context, output))


def mode_name(mode: Mode | None) -> str:
    """Return what the API calls a mode; empty for none."""
    return mode.value if mode else ""
