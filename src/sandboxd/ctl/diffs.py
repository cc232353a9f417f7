"""Changes of files as unified diffs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from rich.text import Text

from sandboxd.ctl.sanitize import clean, clean_line
from sandboxd.v1 import stream_pb2

LONGEST = 200_000
"""Characters of a file above which only its size is told: comparing takes time that grows with the square."""


def unified(diff: stream_pb2.Diff, *, limit: int = 40) -> Iterator[Text]:
    """Yield the lines of one change: its file, then at most `limit` lines of what is different."""
    path = clean_line(diff.path)
    new_file = not diff.HasField("old_text") or diff.kind == "add"
    word = "new file" if new_file else "deleted" if diff.kind == "delete" else "changed"
    if len(diff.old_text) + len(diff.new_text) > LONGEST:
        yield Text.assemble((path, "bold"), (f"  {word}, {len(diff.new_text):,} characters", "dim"))
        return
    before, after = clean(diff.old_text).splitlines(), clean(diff.new_text).splitlines()
    lines = [*difflib.unified_diff(before, after, lineterm="", n=2)][2:]
    added = sum(line.startswith("+") for line in lines)
    removed = sum(line.startswith("-") for line in lines)
    yield Text.assemble((path, "bold"), (f"  {word} ", "dim"), (f"+{added}", "green"), " ", (f"-{removed}", "red"))
    for line in lines[:limit]:
        yield Text(line.expandtabs(4), style=_style(line))
    if len(lines) > limit:
        yield Text(f"… {len(lines) - limit} more lines", style="dim")


def _style(line: str) -> str:
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "dim")
