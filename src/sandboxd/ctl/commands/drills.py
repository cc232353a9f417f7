"""`sandboxctl backups drills` and `drill`."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandboxd.ctl.commands.backups import find_source
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.figures import amount, span
from sandboxd.ctl.names import bare
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.shell import Shell
from sandboxd.ctl.tables import filled, when
from sandboxd.v1 import backup_pb2 as pb

_COLOURS = {pb.DRILL_STATUS_PASSED: "green", pb.DRILL_STATUS_FAILED: "red"}


async def run(shell: Shell, said: str, *, timeout: float) -> Exit:
    """Try a restore now; its exit says what it came to."""
    backup = await find_source(shell, said) if said else ""
    drill = await shell.client.backups.drill(backup, timeout=timeout)
    if shell.json:
        shell.emit(drill)
    else:
        _tell(shell, drill)
    return Exit.OK if drill.status == pb.DRILL_STATUS_PASSED else Exit.FAILED


async def ls(shell: Shell, *, limit: int) -> Exit:
    """List restores that were tried."""
    rows = list[pb.Drill]()
    async for each in shell.client.backups.drills():
        rows.append(each)
        if len(rows) >= limit:
            break
    if shell.json:
        for each in rows:
            shell.emit(each)
    elif rows:
        shell.out.print(drill_table(rows, shell.out))
    else:
        shell.err.print(Text("No restore has been tried yet. Try one with: sandboxctl backups drill", "dim"))
    return Exit.OK


def drill_table(drills: Iterable[pb.Drill], console: Console) -> Table:
    """Make the table of `backups drills`."""
    rows = [
        (
            when(each.create_time),
            pb.DrillStatus.Name(each.status).removeprefix("DRILL_STATUS_"),
            each.client,
            clean_line(each.backup.split("/")[1]),
            bare(each.backup),
            amount(sum(one.bytes for one in each.volumes)) if each.volumes else "-",
            span(sum(each.seconds.values())) if each.seconds else "-",
            clean_line(each.failure.reason),
        )
        for each in drills
    ]
    columns = ("BEGUN", "STATUS", "CLIENT", "SANDBOX", "BACKUP", "COMPARED", "TOOK", "WHY")
    return filled(console, columns, rows, spare=("CLIENT", "TOOK"))


def _tell(shell: Shell, drill: pb.Drill) -> None:
    status = pb.DrillStatus.Name(drill.status).removeprefix("DRILL_STATUS_")
    steps = ", ".join(f"{name} {span(seconds)}" for name, seconds in sorted(drill.seconds.items()))
    shell.say(f"{bare(drill.backup)} {status}{f': {steps}' if steps else ''}", _COLOURS.get(drill.status, "yellow"))
    for each in drill.volumes:
        kind = pb.BackupVolumeKind.Name(each.kind).removeprefix("BACKUP_VOLUME_KIND_").lower()
        same = "as it was" if each.expected == each.found else f"{each.difference_count:,} differences"
        shell.say(f"  {kind}: {each.entries:,} entries, {amount(each.bytes)} compared, {same}", "dim")
        shell.say(f"    {each.found}", "dim")
        for one in each.differences:
            shell.say(f"    {clean_line(one)}", "red")
    if drill.failure.reason:
        shell.err.print(Text(f"✗ {clean_line(drill.failure.message)}", style="red"))
