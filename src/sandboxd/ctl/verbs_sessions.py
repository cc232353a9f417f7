"""The verbs of sessions: names, options and help. What they do is in `commands/`, imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandboxd.ctl.options import (
    AnySandboxArgument,
    ModelOption,
    ModeOption,
    Output,
    OutputOption,
    SandboxArgument,
    SessionArgument,
    SessionOption,
    ThoughtsOption,
)
from sandboxd.ctl.root import app, execute, help_text, mode_name


@app.command(
    help=help_text(
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
        mode=mode_name(mode),
        model=model,
        thoughts=thoughts,
    )
    execute(context, output, lambda shell: command.prompt(shell, options))


@app.command(
    help=help_text(
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
        sandbox=sandbox, session=session, title=title, mode=mode_name(mode), model=model, thoughts=thoughts
    )
    execute(context, Output.TEXT, lambda shell: command.chat(shell, options))


@app.command(help=help_text("List the sessions of a sandbox, newest first.", "sandboxctl sessions demo"))
def sessions(context: typer.Context, sandbox: AnySandboxArgument, output: OutputOption = None) -> None:
    """List sessions."""
    from sandboxd.ctl.commands import sessions as command

    execute(context, output, lambda shell: command.sessions(shell, sandbox))


@app.command(
    help=help_text(
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

    execute(
        context,
        output,
        lambda shell: command.history(shell, session, follow=follow, after=after, thoughts=thoughts),
    )
