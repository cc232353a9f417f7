"""Consoles: in colour for a person at a terminal, plain for everything else."""

from __future__ import annotations

import os
import sys
from typing import IO

from rich.console import Console

PIPE_WIDTH = 1000


def make_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Make a console that never interprets markup, emoji codes or links in what it prints.

    Without a terminal, or with NO_COLOR set, it writes no escape sequence at all. The stream is looked up at each
    print, so that it follows when somebody puts another one in its place (prompt_toolkit does, below a prompt).
    """
    terminal = is_fancy(sys.stderr if stderr else sys.stdout)
    return Console(
        stderr=stderr,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        markup=False,
        emoji=False,
        highlight=False,
        # A pipe has no width: nothing is cut, and who reads it wraps.
        width=width if terminal else width or PIPE_WIDTH,
        soft_wrap=not terminal,
    )


def is_fancy(stream: IO[str]) -> bool:
    """Tell whether colours and frames help whoever reads this stream."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
