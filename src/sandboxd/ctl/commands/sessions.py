"""`sandboxctl sessions` and `history`."""

from __future__ import annotations

from rich.text import Text

from sandboxd.ctl.exits import Exit
from sandboxd.ctl.names import bare, find_sandbox, find_session, sandbox_of
from sandboxd.ctl.render import EventRenderer
from sandboxd.ctl.shell import Shell
from sandboxd.ctl.tables import session_table
from sandboxd.ctl.views import JsonView, TextView, link_notes


async def sessions(shell: Shell, said: str) -> Exit:
    """List the sessions of a sandbox."""
    sandbox = await find_sandbox(shell.client, said, ended=True)
    found = shell.client.sessions(sandbox)
    if shell.json:
        async for each in found:
            shell.emit(each)
        return Exit.OK
    rows = [each async for each in found]
    if rows:
        shell.out.print(session_table(rows, shell.out))
    else:
        hint = f"There are no sessions yet. Begin one with: sandboxctl chat {bare(sandbox)}"
        shell.err.print(Text(hint, style="dim"))
    return Exit.OK


async def history(shell: Shell, said: str, *, follow: bool, after: int, thoughts: bool) -> Exit:
    """Show the log of a session; with `follow`, go on with what happens."""
    session = await find_session(shell.client, said)
    renderer = None if shell.json else EventRenderer(shell.out, thoughts=thoughts)
    view = JsonView() if renderer is None else TextView(renderer)
    if not follow:
        async for event in shell.client.history(session, after_sequence=after):
            view.show(event)
    else:
        stream = shell.client.stream(
            sandbox_of(session),
            session=session,
            after_sequence=after,
            watch_only=True,
            on_link=link_notes(shell.err, renderer),
        )
        async with stream:
            async for event in stream:
                if event.sequence or not shell.json:
                    view.show(event)
    if renderer is not None:
        renderer.end_line()
    return Exit.OK
