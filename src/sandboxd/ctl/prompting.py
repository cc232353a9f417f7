"""Asks before something is destroyed."""

from __future__ import annotations

import asyncio
import sys

from rich.text import Text

from sandboxd.ctl.shell import Shell, UsageError


async def confirmed(shell: Shell, question: str) -> bool:
    """Ask at the terminal.

    Raises:
        UsageError: There is none.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("This asks first, and there is no terminal to ask at. Give --yes.")
    shell.err.print(Text(question, style="yellow"), end="")
    said = await asyncio.to_thread(sys.stdin.readline)
    return said.strip().lower() in ("y", "yes")
