"""The command line of `sandboxctl`: names, options and help.

What the commands do is in `commands/`, imported when one runs: `--help` and completion must be quick. For the same
reason help is plain text: typer's coloured help imports half of rich, and takes twice as long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sandboxd.ctl.completion import complete_sandbox
from sandboxd.ctl.options import (
    AddressOption,
    CaOption,
    Dimension,
    FreelancerOption,
    Globals,
    LabelOption,
    Mode,
    ModelOption,
    ModeOption,
    Output,
    OutputOption,
    Root,
    SandboxArgument,
    SandboxOption,
    SessionArgument,
    SessionOption,
    StateOption,
    ThoughtsOption,
    Tier,
    TimeoutOption,
    TokenFileOption,
    TokenOption,
    is_json,
    parse_labels,
    target_of,
)
from sandboxd.ctl.target import TargetOptions

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


def _help(what: str, *examples: str) -> str:
    """Write a command's help: what it does, then examples on lines of their own."""
    lines = "\n".join(f"  {each}" for each in examples)
    return f"{what}\n\n\b\nExamples:\n{lines}"


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
    output: OutputOption = None,
) -> None:
    target = TargetOptions(address=address, token=token, token_file=token_file, ca_file=ca_file)
    context.obj = Globals(target, output or Output.TEXT)


def _run(context: typer.Context, output: Output | None, work: Callable[[Shell], Awaitable[Exit]]) -> None:
    from sandboxd.ctl.shell import run

    run(target_of(context), work, as_json=is_json(context, output))


@app.command(
    help=_help(
        "Create a sandbox and wait until it is ready.",
        "sandboxctl create --name demo",
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
    tier: Annotated[Tier, typer.Option("--tier", help="How much it may use.")] = Tier.BASIC,
    model: ModelOption = "",
    mode: ModeOption = None,
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
        tier=tier.value,
        model=model,
        mode=_mode(mode),
        request_id=request_id,
        timeout=timeout,
        progress=wait,
        quiet=quiet,
    )
    _run(context, output, lambda shell: sandboxes.create(shell, options))


@app.command(
    help=_help(
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
    _run(
        context,
        output,
        lambda shell: sandboxes.ls(
            shell, states=states, freelancer=freelancer, labels=labels, everything=everything, quiet=quiet
        ),
    )


@app.command(
    help=_help("Show one sandbox and its newest sessions.", "sandboxctl show demo", "sandboxctl show demo -o json")
)
def show(context: typer.Context, sandbox: SandboxArgument, output: OutputOption = None) -> None:
    """Show one sandbox."""
    from sandboxd.ctl.commands import sandboxes

    _run(context, output, lambda shell: sandboxes.show(shell, sandbox))


@app.command(
    help=_help(
        "Run one turn and show it as it comes.\n\n"
        "The words after SANDBOX are the prompt; `-` reads it from stdin. Where a tool needs permission you are asked; "
        "without a terminal it is refused, unless --yes. Ctrl-C cancels the turn.",
        "sandboxctl prompt demo write a haiku into haiku.txt",
        "git diff | sandboxctl prompt demo --deny -",
        "sandboxctl prompt demo --session last --yes --attach shot.png what is wrong here?",
        "sandboxctl prompt demo -o json hello | jq -j 'select(.text).text.text'",
    )
)
def prompt(
    context: typer.Context,
    sandbox: SandboxArgument,
    text: Annotated[list[str], typer.Argument(metavar="TEXT…", help="The prompt; `-` is stdin.", show_default=False)],
    session: SessionOption = "",
    attach: Annotated[
        list[Path] | None,
        typer.Option("--attach", "-f", metavar="FILE", help="Send a file or an image with it; may be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Allow every tool, each time.")] = False,
    ask: Annotated[bool, typer.Option("--ask", help="Ask at the terminal (the default where there is one).")] = False,
    deny: Annotated[bool, typer.Option("--deny", help="Refuse every tool that needs permission.")] = False,
    title: Annotated[str, typer.Option("--title", help="Title of a new session.", show_default=False)] = "",
    mode: ModeOption = None,
    model: ModelOption = "",
    thoughts: ThoughtsOption = True,
    output: OutputOption = None,
) -> None:
    """Run one turn."""
    from sandboxd.ctl.commands import prompt as command
    from sandboxd.ctl.shell import UsageError

    chosen = [each for each, said in zip(command.Permissions, (ask, yes, deny), strict=True) if said]
    if len(chosen) > 1:
        raise typer.BadParameter("--yes, --ask and --deny exclude each other.")
    try:
        words = command.read_text(text)
    except UsageError as error:
        raise typer.BadParameter(str(error), param_hint="TEXT") from error
    options = command.PromptOptions(
        sandbox=sandbox,
        text=words,
        session=session,
        attach=attach or (),
        permissions=chosen[0] if chosen else None,
        title=title,
        mode=_mode(mode),
        model=model,
        thoughts=thoughts,
    )
    _run(context, output, lambda shell: command.prompt(shell, options))


@app.command(
    help=_help(
        "Talk to Gemini CLI in a sandbox.\n\n"
        "Enter sends; Alt-Enter, or Esc and then Enter, begins a new line. Ctrl-C cancels the turn that runs, not the "
        "program; twice on an empty line it leaves, as Ctrl-D does. Permission questions are answered at the keyboard. "
        "/help, /mode, /model, /attach, /session and /quit are for sandboxctl; other /words go to Gemini CLI.",
        "sandboxctl chat demo",
        "sandboxctl chat demo --session last",
        "sandboxctl chat demo --mode plan --title 'the new parser'",
    )
)
def chat(
    context: typer.Context,
    sandbox: SandboxArgument,
    session: SessionOption = "",
    title: Annotated[str, typer.Option("--title", help="Title of a new session.", show_default=False)] = "",
    mode: ModeOption = None,
    model: ModelOption = "",
    thoughts: ThoughtsOption = True,
) -> None:
    """Talk at the keyboard."""
    from sandboxd.ctl.commands import chat as command

    options = command.ChatOptions(
        sandbox=sandbox, session=session, title=title, mode=_mode(mode), model=model, thoughts=thoughts
    )
    _run(context, Output.TEXT, lambda shell: command.chat(shell, options))


@app.command(help=_help("List the sessions of a sandbox, newest first.", "sandboxctl sessions demo"))
def sessions(context: typer.Context, sandbox: SandboxArgument, output: OutputOption = None) -> None:
    """List sessions."""
    from sandboxd.ctl.commands import sessions as command

    _run(context, output, lambda shell: command.sessions(shell, sandbox))


@app.command(
    help=_help(
        "Show what happened in a session.",
        "sandboxctl history demo/last",
        "sandboxctl history ses-01jd2m --follow",
        "sandboxctl history demo/last --after 120 -o json",
    )
)
def history(
    context: typer.Context,
    session: SessionArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")] = False,
    after: Annotated[int, typer.Option("--after", min=0, metavar="N", help="Only events after number N.")] = 0,
    thoughts: ThoughtsOption = True,
    output: OutputOption = None,
) -> None:
    """Show a session."""
    from sandboxd.ctl.commands import sessions as command

    _run(
        context,
        output,
        lambda shell: command.history(shell, session, follow=follow, after=after, thoughts=thoughts),
    )


@app.command(
    help=_help(
        "Release a sandbox's compute and keep its files. Only `resume` brings it back.",
        "sandboxctl pause demo",
        "sandboxctl pause demo --force",
    )
)
def pause(
    context: typer.Context,
    sandbox: SandboxArgument,
    force: Annotated[bool, typer.Option("--force", help="Even in the middle of a turn, which is interrupted.")] = False,
    timeout: TimeoutOption = 180.0,
    output: OutputOption = None,
) -> None:
    """Pause a sandbox."""
    from sandboxd.ctl.commands import sandboxes

    _run(context, output, lambda shell: sandboxes.pause(shell, sandbox, force=force, timeout=timeout))


@app.command(help=_help("Bring a paused or failed sandbox back.", "sandboxctl resume demo"))
def resume(
    context: typer.Context, sandbox: SandboxArgument, timeout: TimeoutOption = 180.0, output: OutputOption = None
) -> None:
    """Resume a sandbox."""
    from sandboxd.ctl.commands import sandboxes

    _run(context, output, lambda shell: sandboxes.resume(shell, sandbox, timeout=timeout))


@app.command(
    help=_help(
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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    timeout: TimeoutOption = 180.0,
    output: OutputOption = None,
) -> None:
    """Terminate sandboxes."""
    from sandboxd.ctl.commands import sandboxes

    _run(context, output, lambda shell: sandboxes.rm(shell, sandbox, yes=yes, timeout=timeout))


@app.command(
    help=_help(
        "Show tokens and cost, from the ledger that is billed.",
        "sandboxctl usage --by model",
        "sandboxctl usage --by freelancer --by day --since 7d",
        "sandboxctl usage --sandbox demo --events --since today",
    )
)
def usage(
    context: typer.Context,
    by: Annotated[
        list[Dimension] | None, typer.Option("--by", help="Add up by this; up to three.", show_default=False)
    ] = None,
    since: Annotated[
        str,
        typer.Option("--since", help="From this moment: 2026-11-23[T14:00], today, 24h, 7d.", show_default=False),
    ] = "",
    until: Annotated[str, typer.Option("--until", help="Before this moment.", show_default=False)] = "",
    events: Annotated[bool, typer.Option("--events", help="Each call of the model instead of sums.")] = False,
    freelancer: FreelancerOption = "",
    sandbox: SandboxOption = "",
    session: Annotated[str, typer.Option("--session", help="Only this session.", show_default=False)] = "",
    model: Annotated[str, typer.Option("--model", help="Only this model.", show_default=False)] = "",
    output: OutputOption = None,
) -> None:
    """Show usage."""
    from sandboxd.ctl.commands import usage as command

    options = command.UsageOptions(
        by=[each.value for each in by or ()],
        since=since,
        until=until,
        events=events,
        freelancer=freelancer,
        sandbox=sandbox,
        session=session,
        model=model,
    )
    _run(context, output, lambda shell: command.usage(shell, options))


@app.command(
    help=_help(
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
    _run(context, output, lambda shell: command.watch(shell, states=states, freelancer=freelancer, labels=labels))


def _mode(mode: Mode | None) -> str:
    return mode.value if mode else ""
