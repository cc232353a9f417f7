"""`sandboxctl admin abandoned`: what nobody needs any more, what it costs, and an end of it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from sandboxd.ctl.exits import Exit
from sandboxd.ctl.figures import amount
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.shell import Shell, UsageError
from sandboxd.ctl.tables import when
from sandboxd.v1 import admin_pb2 as pb


async def abandoned(shell: Shell, remove: Sequence[str], *, dry_run: bool) -> Exit:
    """Show what is abandoned, or remove some of it by name."""
    found = await shell.client.admin.abandoned()
    if remove:
        return await _remove(shell, found, remove, dry_run=dry_run)
    if shell.json:
        shell.emit(found)
    elif found.abandoned:
        shell.out.print(_table(found.abandoned))
        shell.out.print(Text(_sum(found), style="dim"))
    else:
        shell.out.print(Text("Nothing is abandoned."))
    for place, why in found.unasked.items():
        shell.err.print(Text(f"{clean_line(place)} did not answer: {clean_line(why)}", style="yellow"))
    return Exit.FAILED if found.unasked else Exit.OK


async def _remove(shell: Shell, found: pb.ListAbandonedResponse, names: Sequence[str], *, dry_run: bool) -> Exit:
    chosen = []
    for name in names:
        kind, _, rest = name.partition(":")
        those = [
            one
            for one in found.abandoned
            if one.name == name or (_word(pb.AbandonedKind.Name(one.kind)) == kind and one.name == rest)
        ]
        if len(those) != 1:
            what = "Nothing abandoned is called" if not those else "Several things are called"
            raise UsageError(f"{what} {name!r}. See: sandboxctl admin abandoned")
        chosen += those
    for one in chosen:
        if not dry_run:
            one = await shell.client.admin.remove_abandoned(one.kind, one.name)  # noqa: PLW2901  as it was then
        if shell.json:
            shell.emit(one)
        else:
            done = "would be removed" if dry_run else "is removed"
            shell.say(f"{_word(pb.AbandonedKind.Name(one.kind))} {clean_line(one.name)} {done}", "green")
    return Exit.OK


def _table(found: Sequence[pb.Abandoned]) -> Table:
    table = Table("KIND", "NAME", "SIZE", "A MONTH", "SINCE", "WHY", "GOES", box=box.SIMPLE_HEAD)
    for one in found:
        table.add_row(
            _word(pb.AbandonedKind.Name(one.kind)),
            clean_line(one.name),
            amount(one.size_bytes) if one.HasField("size_bytes") else "-",
            f"{one.cost_micros / 1e6:,.2f}" if one.HasField("cost_micros") else "-",
            when(one.first_seen_time),
            _word(pb.AbandonedReason.Name(one.reason)).replace("_", " "),
            _goes(one),
        )
    return table


def _goes(one: pb.Abandoned) -> str:
    if one.HasField("remove_time"):
        return when(one.remove_time)
    if one.kind == pb.ABANDONED_KIND_IMAGE:
        return "by sweep images"
    if one.kind == pb.ABANDONED_KIND_UPLOAD and not one.removable:
        return "by the registry"
    if one.removable and one.reason not in (pb.ABANDONED_REASON_NO_ROW, pb.ABANDONED_REASON_RETAINED):
        return "when seen again"  # the place was not reached this time
    return "by --remove" if one.removable else "by you"


def _sum(found: pb.ListAbandonedResponse) -> str:
    things = "thing" if found.total == 1 else "things"
    shown = f"{found.total} {things}, {amount(sum(one.size_bytes for one in found.abandoned))}"
    if any(one.HasField("cost_micros") for one in found.abandoned):
        shown += f", {sum(one.cost_micros for one in found.abandoned) / 1e6:,.2f} a month"
    return shown


def _word(name: str) -> str:
    return name.removeprefix("ABANDONED_KIND_").removeprefix("ABANDONED_REASON_").lower()
