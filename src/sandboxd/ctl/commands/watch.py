"""`sandboxctl watch`: sandboxes as they change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from rich.console import Group
from rich.live import Live
from rich.text import Text

from sandboxd.ctl.exits import Exit
from sandboxd.ctl.names import bare
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.shell import Shell, write_line
from sandboxd.ctl.tables import sandbox_table, state_name
from sandboxd.v1 import sandbox_pb2

_REMOVED = sandbox_pb2.WatchResponse.CHANGE_REMOVED
_SYNCED = sandbox_pb2.WatchResponse.CHANGE_SYNCED


async def watch(shell: Shell, *, states: Sequence[str], freelancer: str, labels: Mapping[str, str]) -> Exit:
    """Show sandboxes until Ctrl-C: a table at a terminal, else a line for each change."""
    changes = shell.client.watch(states=states, freelancer=freelancer, labels=labels)
    if not shell.json and shell.out.is_terminal:
        await _table(shell, changes)
        return Exit.OK
    async for change in changes:
        if shell.json:
            shell.emit(change)
        elif change.change != _SYNCED:
            sandbox = change.sandbox
            state = "removed" if change.change == _REMOVED else state_name(sandbox.state)
            moment = datetime.now().astimezone().strftime("%H:%M:%S")
            write_line(f"{moment}  {bare(sandbox.name)}  {state}  {clean_line(sandbox.display_name)}".rstrip())
    return Exit.OK


async def _table(shell: Shell, changes: AsyncIterator[sandbox_pb2.WatchResponse]) -> None:
    rows: dict[str, sandbox_pb2.Sandbox] = {}

    def picture() -> Group:
        if not rows:
            return Group(Text("There are no sandboxes here.", style="dim"))
        return Group(sandbox_table(rows.values(), shell.out), Text("Ctrl-C leaves", style="dim"))

    with Live(picture(), console=shell.out, auto_refresh=False, vertical_overflow="ellipsis") as live:

        async def grow_old() -> None:
            while True:
                await asyncio.sleep(1)
                live.update(picture(), refresh=True)  # "3 s ago" is no lasting truth

        ageing = asyncio.create_task(grow_old(), name="watch-ageing")
        try:
            async for change in changes:
                if change.change == _REMOVED:
                    rows.pop(change.sandbox.name, None)
                elif change.change != _SYNCED:
                    rows[change.sandbox.name] = change.sandbox
                if change.change != sandbox_pb2.WatchResponse.CHANGE_PRESENT:
                    live.update(picture(), refresh=True)
        finally:
            ageing.cancel()
            with suppress(asyncio.CancelledError):
                await ageing
