"""Where something is mounted below a root, as the kernel tells this process: whole trees and single files alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


def mounted_below(root: bytes, lines: Iterable[bytes] | None = None) -> frozenset[bytes]:
    """Return the mount points below a root, relative to it; the root itself is none.

    Not by `st_dev`: an overlay gives each of its layers another device.

    Args:
        root: Absolute path.
        lines: Of a mountinfo, see proc_pid_mountinfo(5); None reads that of this process.
    """
    top = root.rstrip(b"/") + b"/"
    if lines is None:
        lines = MOUNTS.read_bytes().splitlines()
    points = (_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), line.split(b" ", 5)[4]) for line in lines)
    return frozenset(point[len(top) :] for point in points if point.startswith(top) and len(point) > len(top))
