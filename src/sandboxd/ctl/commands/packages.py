"""`sandboxctl packages`."""

from __future__ import annotations

from rich.text import Text

from sandboxd.ctl.exits import Exit
from sandboxd.ctl.figures import count
from sandboxd.ctl.names import find_sandbox
from sandboxd.ctl.shell import Shell
from sandboxd.ctl.tables import when
from sandboxd.ctl.tables_packages import history_table, package_table


async def ls(shell: Shell, said: str, *, manager: str, unsaved: bool) -> Exit:
    """List what is installed."""
    name = await find_sandbox(shell.client, said)
    listed = await shell.client.packages.list(name, manager=manager, unsaved=unsaved)
    if shell.json:
        for each in listed.packages:
            shell.emit(each)
        return Exit.OK
    if listed.last.recorded:
        moment = when(listed.last.record_time)
        gone = " What is not saved is gone." if any(each.unsaved for each in listed.packages) else ""
        shell.say(f"The sandbox does not run; this is what was known at {moment}.{gone}", "yellow")
    if listed.packages:
        shell.out.print(package_table(listed.packages, shell.out))
    else:
        _say_none(shell, "No package is unsaved." if unsaved else "No package is installed.")
    if listed.last.incomplete:
        shell.say("Not all of it could be read; of some managers this is what they said before.", "yellow")
    if unsaved and not listed.packages and listed.last.HasField("root_change_time"):
        shell.say("But something else in the root file system was changed.", "yellow")
    return Exit.OK


async def history(shell: Shell, said: str, *, manager: str, unsaved: bool, limit: int) -> Exit:
    """List what was installed, removed and changed, the newest last."""
    name = await find_sandbox(shell.client, said)
    changes, last = await shell.client.packages.history(name, manager=manager, unsaved=unsaved, limit=limit)
    if shell.json:
        for each in changes:
            shell.emit(each)
        return Exit.OK
    if changes:
        shell.out.print(history_table(changes, shell.out))
    else:
        _say_none(shell, "Nothing was installed, changed or removed.")
    if last.missed:
        shell.say(f"{count(last.missed, 'change')} came too fast to be noted, or while nobody watched.", "yellow")
    return Exit.OK


def _say_none(shell: Shell, words: str) -> None:
    shell.err.print(Text(words, style="dim"))
