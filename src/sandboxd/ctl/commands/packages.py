"""`sandboxctl packages`."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from sandboxd.ctl.exits import Exit
from sandboxd.ctl.names import find_sandbox
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.shell import Shell
from sandboxd.ctl.tables import filled
from sandboxd.v1 import package_pb2 as pb


async def ls(shell: Shell, said: str, *, manager: str, unsaved: bool) -> Exit:
    """List what is installed."""
    name = await find_sandbox(shell.client, said)
    listed = await shell.client.packages.list(name, manager=manager, unsaved=unsaved)
    if shell.json:
        for each in listed.packages:
            shell.emit(each)
        return Exit.OK
    shell.out.print(package_table(listed.packages, shell.out))
    if listed.last.incomplete:
        shell.say("Not all of it could be read; of some managers this is what they said before.", "yellow")
    if unsaved and not listed.packages and listed.last.HasField("root_change_time"):
        shell.say("No package is unsaved, but something else in the root file system was changed.", "yellow")
    return Exit.OK


def package_table(packages: Iterable[pb.Package], console: Console) -> Table:
    """Make the table of `packages`."""
    columns = ("MANAGER", "PACKAGE", "VERSION", "KEPT", "ASKED FOR")
    rows = [
        (
            pb.PackageManager.Name(each.manager).removeprefix("PACKAGE_MANAGER_").lower(),
            clean_line(each.name),
            clean_line(each.version),
            _kept(each),
            "yes" if each.requested else "no",
        )
        for each in packages
    ]
    return filled(console, columns, rows, spare=("ASKED FOR",))


def _kept(package: pb.Package) -> str:
    if package.place == pb.PACKAGE_PLACE_HOME:
        return "home volume"
    return "image" if package.initial else "not saved"
