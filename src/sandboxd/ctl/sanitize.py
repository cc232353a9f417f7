"""Makes text of models, tools and other people safe for a terminal.

A terminal obeys what it prints: an escape sequence in a tool's output could retitle the window, write the clipboard,
or hide what a permission question asks for. What is printed passes through here first, always.
"""

from __future__ import annotations

import re

_SEQUENCES = re.compile(
    r"""
    (?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])   # OSC, DCS, SOS, PM, APC: a string up to its end ...
    [^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|\Z)     # ... which is BEL or ST, or the end of this piece of text
    | (?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]          # CSI: colours, cursor moves, modes
    | \x1b[ -/]*[0-~]                           # everything shorter
    """,
    re.VERBOSE,
)
# Control characters but newline and tab; then the marks that turn the direction of writing (what is read is then not
# what is run, CVE-2021-42574), invisible tag characters, and line separators that some terminals obey.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\U000e0000-\U000e007f]"
)

WHY_CHARACTERS = 4_000
"""Of one that says why something failed: its end is what one needs."""


def clean(text: str) -> str:
    """Return the text without escape sequences and control characters; newlines and tabs stay."""
    text = text.replace("\r\n", "\n")
    text = _SEQUENCES.sub("", text)
    return _FORBIDDEN.sub("", text.replace("\r", "\n"))


def clean_line(text: str, *, limit: int = 200) -> str:
    """Return the text as one safe line of at most that many characters."""
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
