"""What a layer's writer tells people beside the layer: the largest paths, what was left out, why it refuses. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

from sandboxd.images.ports import LeftOut
from sandboxd.model.image_errors import CaptureInvalidError, ImageTooLargeError

SAMPLES: Final = 10
"""Paths that are named for each reason, and largest paths."""
WORTH_NAMING: Final = 100
"""A refusal names no path of less than a hundredth of the largest: removing it would change nothing."""
TEXT_BYTES: Final = 200
"""Of a path for people; the middle of a longer one is left out."""
REASONS: Final = frozenset(
    {
        "attribute",
        "device",
        "excluded",
        "mount",
        "secret",
        "secret_kept",
        "socket",
        "token",
        "too_deep",
        "torn",
        "unreadable",
        "vanished",
        "whiteout_name",
    }
)
"""Of leaving something out. Those of a capture are in `SkippedPath.reason`; the writer's own are `attribute` (access
lists and the like: the path is kept, they are not), `secret_kept` (named and kept, by the policy), `token` (a key was
found in it) and `torn`."""
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


def path_text(path: bytes) -> str:
    """Return a path as people read it: absolute, with what cannot be printed escaped."""
    text = "/" + path.decode("utf-8", "backslashreplace")
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return shown if len(shown) <= TEXT_BYTES else f"{shown[: TEXT_BYTES // 2]}…{shown[-TEXT_BYTES // 2 :]}"


def size_text(size: int) -> str:
    """Return a number of bytes as people read it."""
    amount, unit = float(size), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{size} bytes" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


class Largest:
    """The largest paths of many, in constant memory."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, bytes]] = []

    def add(self, path: bytes, size: int) -> None:
        """Look at one."""
        if len(self._heap) < SAMPLES:
            heapq.heappush(self._heap, (size, path))
        elif size > self._heap[0][0]:
            heapq.heapreplace(self._heap, (size, path))

    def listed(self) -> list[tuple[str, int]]:
        """Return them, the largest first; of the same size in the order of their bytes."""
        return [(path_text(path), size) for size, path in sorted(self._heap, key=lambda one: (-one[0], one[1]))]


class LeftOuts:
    """What was left out, counted by reason."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, path: bytes, reason: str) -> None:
        """Count one; a reason that nobody knows is `other`."""
        reason = reason if reason in REASONS else "other"
        count, paths = self._found.get(reason, (0, []))
        if len(paths) < SAMPLES:
            paths.append(path_text(path))
        self._found[reason] = count + 1, paths

    def paths(self, reason: str) -> Sequence[str]:
        """Return those that are named for a reason."""
        return self._found.get(reason, (0, []))[1]

    def count(self, reason: str) -> int:
        """Return how many there are for a reason."""
        return self._found.get(reason, (0, []))[0]

    def listed(self) -> list[LeftOut]:
        """Return all, by reason."""
        return [
            LeftOut(reason=reason, count=count, paths=tuple(paths))
            for reason, (count, paths) in sorted(self._found.items())
        ]


def invalid(what: str, path: bytes | None = None) -> CaptureInvalidError:
    """Say that a stream is no difference from its base."""
    shown = "" if path is None else path_text(path)
    return CaptureInvalidError(
        f"What the sandbox sent is no difference from its base: {what}{f' ({shown})' if shown else ''}. Its agent was "
        "replaced or is defective: stop and start the sandbox, and install again what was not kept.",
        what=what,
        path=shown,
    )


def too_large(limit: str, most: int, largest: Largest) -> ImageTooLargeError:
    """Say which limit was exceeded.

    Args:
        limit: A field of `ImageLimits`.
        most: Its value.
        largest: Paths so far.
    """
    what = {
        "raw_bytes": f"more than {size_text(most)} beside its base",
        "compressed_bytes": f"more than {size_text(most)} compressed beside its base",
        "entries": f"more than {most} files and directories beside its base",
        "file_bytes": f"a file of more than {size_text(most)}",
    }[limit]
    listed = largest.listed()
    listed = [(path, size) for path, size in listed if size * WORTH_NAMING >= listed[0][1]]
    named = ", ".join(f"{path} ({size_text(size)})" for path, size in listed)
    return ImageTooLargeError(
        f"The image would have {what}. Remove what is not needed, or move it to the home or workspace volume."
        + (f" The largest: {named}." if named else ""),
        limit=limit,
        most=str(most),
        largest=named,
    )
