"""Following long work that the service does, to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TypeVar

from rich.status import Status
from rich.text import Text

from sandboxd.ctl.client import ApiError
from sandboxd.ctl.interrupts import on_interrupt
from sandboxd.ctl.shell import Shell

_Work = TypeVar("_Work")


async def followed(
    shell: Shell,
    what: str,
    *,
    doing: str,
    follow: Callable[[Status | None], Coroutine[object, object, _Work]],
    cancel: Callable[[], Coroutine[object, object, object]],
) -> _Work:
    """Follow work; Ctrl-C cancels it, and what that came to is what is answered. A second one leaves it to itself.

    Args:
        shell: Where progress is shown, if that is a terminal and nobody asked for JSON.
        what: Its name, as `commit`.
        doing: What is shown before there is any progress.
        follow: Waits for its end, and writes progress where there is a status.
        cancel: Asks the service to end it.
    """
    cancels = list[asyncio.Task[object]]()
    following = asyncio.create_task(_shown(shell, doing, follow), name="follow")

    def interrupted() -> None:
        if cancels:
            following.cancel()
            return
        shell.err.print(Text(f"Cancelling the {what}; Ctrl-C again leaves it to itself.", style="yellow"))
        cancels.append(asyncio.create_task(cancel(), name="cancel"))

    try:
        with on_interrupt(interrupted):
            return await following
    finally:
        for task in cancels:
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def _shown(
    shell: Shell, doing: str, follow: Callable[[Status | None], Coroutine[object, object, _Work]]
) -> _Work:
    if shell.err.is_terminal and not shell.json:
        with shell.err.status(Text(doing)) as status:
            return await follow(status)
    return await follow(None)
