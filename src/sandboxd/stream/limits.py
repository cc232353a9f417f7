"""Sizes that the processor keeps to, so that no output of the CLI makes an event, or the service, grow without bound.

Pure numbers. Limits of what a person sends (prompts, attachments) are in `model/session.py`.
"""

from __future__ import annotations

MAX_LINE_BYTES = 16 << 20
"""Longest line of output that is kept to be understood: 16 MiB. The largest honest line is a diff of a big file."""
HEAD_BYTES = 64 << 10
"""What is kept of a line that was too long: its first 64 KiB."""
MAX_UNPARSED_BYTES = 1 << 20
"""Bytes that one `Unparsed` event holds; of more, the first `HEAD_BYTES` and the digest."""
MAX_DEPTH = 64
"""How deep the JSON of one line may be nested. ACP needs about ten levels."""
MAX_NODES = 200_000
"""Objects, lists and members of one line's JSON: 16 MiB of `[],[],…` would be 400 MB of Python objects."""
MAX_DIGITS = 100
"""Digits of one number of the JSON; conversion takes quadratic time."""
MAX_TEXT_BYTES = 64 << 10
"""UTF-8 bytes of one `Text` or `Thought` event; a longer chunk becomes several events."""
MAX_OUTPUT_BYTES = 1 << 20
"""UTF-8 bytes of text and diffs of one `ToolOutput` or `PermissionRequest`; more is cut, and says so."""
MAX_TITLE_BYTES = 64 << 10
"""UTF-8 bytes of a title. Generous: the title of a shell tool is the command that a person approves."""
MAX_MESSAGE_BYTES = 16 << 10
"""UTF-8 bytes of the message of an error or a notice."""
MAX_NAMES = 1_000
"""Entries of a list of names (commands, modes, models, locations)."""
MAX_NAME_BYTES = 4 << 10
"""UTF-8 bytes of one name of such a list."""
MAX_OPTIONS = 50
"""Options of one permission request."""
MAX_OPEN_CALLS = 1_000
"""Open tool calls and open permission requests of one session; the oldest is closed when one more comes."""
