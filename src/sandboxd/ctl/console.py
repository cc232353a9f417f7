"""Consoles: in colour for a person at a terminal, plain for everything else."""

from __future__ import annotations

import os
import sys
from typing import IO

from rich.console import Console


def make_console(file: IO[str] | None = None, *, width: int | None = None) -> Console:
    """Make a console that never interprets markup, emoji codes or links in what it prints.

    Without a terminal, or with NO_COLOR set, it writes no escape sequence at all.
    """
    stream = file or sys.stdout
    terminal = is_fancy(stream)
    return Console(
        file=stream,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        markup=False,
        emoji=False,
        highlight=False,
        width=width,
        # A pipe has no width: lines are cut by who reads them.
        soft_wrap=not terminal,
    )


def is_fancy(stream: IO[str]) -> bool:
    """Tell whether colours and frames help whoever reads this stream."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
