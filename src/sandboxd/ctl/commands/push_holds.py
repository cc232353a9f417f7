"""`sandboxctl admin hold-pushes` and `release-pushes`."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Final

from sandboxd.ctl.commands.lifecycle import parse_span
from sandboxd.ctl.connection import is_away
from sandboxd.ctl.errors import ApiError
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.shell import Shell
from sandboxd.ctl.tables import when
from sandboxd.v1 import admin_pb2

RELEASE_SECONDS: Final = 40.0
"""How long a service that is away is waited for; then the hold ends by itself."""


async def hold(shell: Shell, holder: str, *, span: str, wait: str, until_stopped: bool, held_file: Path | None) -> Exit:
    """Hold pushes; told to, until a signal comes, and release them then."""
    stopped = asyncio.Event()
    if until_stopped:  # from the beginning: the first process of a container hears of no signal that it does not handle
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
    holding = asyncio.create_task(
        shell.client.admin.hold_pushes(holder, span=parse_span(span), wait=parse_span(wait)), name="hold-pushes"
    )
    stopping = asyncio.create_task(stopped.wait(), name="stop")
    try:
        await asyncio.wait({holding, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not holding.done():
            holding.cancel()
            await _release_patiently(shell, holder)  # it may have been granted in this moment
            return Exit.INTERRUPTED
        held = holding.result()
        if shell.json:
            shell.emit(admin_pb2.HoldPushesResponse(push_hold=held))
        else:
            shell.say(f"Pushes are held by {clean_line(held.holder)} until {when(held.until_time)}.", "green")
        if held_file is not None:
            await asyncio.to_thread(held_file.touch)
        if not until_stopped:
            return Exit.OK
        await stopping
        await _release_patiently(shell, holder)
        return Exit.OK
    finally:
        for task in (holding, stopping):
            task.cancel()
        await asyncio.gather(holding, stopping, return_exceptions=True)


async def release(shell: Shell, holder: str) -> Exit:
    """Release them."""
    return _told(shell, await shell.client.admin.release_pushes(holder))


async def _release_patiently(shell: Shell, holder: str) -> None:
    """Release them also where the service is away for a moment: nobody comes to do it later."""
    async with asyncio.timeout(RELEASE_SECONDS):
        while True:
            try:
                _told(shell, await shell.client.admin.release_pushes(holder))
            except ApiError as error:
                if not is_away(error):
                    raise
                shell.say("The service is away; trying again.", "yellow")
                await asyncio.sleep(1)
            else:
                return


def _told(shell: Shell, released: bool) -> Exit:
    if shell.json:
        shell.emit(admin_pb2.ReleasePushesResponse(released=released))
    else:
        shell.say("Pushes go on." if released else "Nobody held pushes.", "green")
    return Exit.OK
