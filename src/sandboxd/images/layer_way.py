"""Where a writer of a layer is: the base's entries passed so far, and the directories on the way down. Pure.

A directory is on the way when the sandbox has it, be it sent or the base's. So an entry lies in a directory that is
there or is refused, and nothing below a link, a file or something deleted gets in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from sandboxd.images.layer_rules import bounded_time, kept_attributes, reason_to_leave_out
from sandboxd.model.errors import InternalError
from sandboxd.model.rootfs import BaselineRecord, EntryKind, order_key


@dataclass(slots=True, kw_only=True, eq=False)
class Directory:
    """One that the sandbox has, as a layer would carry it."""

    path: bytes
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    written: bool = False
    """It is in the layer. One that is as in the base gets there with the first thing below it: runtimes that unpack a
    layer for itself would else make it with an owner and a mode of their own."""
    reason: str | None = None
    """Why it is left out with all below; None where it is not."""


_ROOT_PATH: Final = b""


class Way:
    """The present place in the walk."""

    def __init__(self, baseline: Iterator[BaselineRecord]) -> None:
        self._records = baseline
        self._last: bytes | None = None
        self._key = b""
        self._record: BaselineRecord | None = None
        self._next()
        if self._record is not None and self._record.entry.path == _ROOT_PATH:
            self._next()
        self._stack = [Directory(path=_ROOT_PATH, written=True)]

    @property
    def parent(self) -> Directory:
        """The innermost directory."""
        return self._stack[-1]

    def seek(self, path: bytes, key: bytes) -> BaselineRecord | None:
        """Go to a path, which is not before the last one, and return what the base has there.

        Afterwards `parent` is the innermost directory above it that the sandbox has.
        """
        while len(self._stack) > 1 and not path.startswith(self._stack[-1].path + b"/"):
            self._stack.pop()
        while (record := self._record) is not None and self._key < key:
            entry = record.entry
            if entry.kind is EntryKind.DIRECTORY and path.startswith(entry.path + b"/"):
                self._enter_unchanged(record)
            self._next()
        if self._record is not None and self._key == key:
            found = self._record
            self._next()
            return found
        return None

    def enter(self, directory: Directory) -> None:
        """Go into a directory that was just looked for."""
        if self.parent.reason is not None:
            directory.reason = self.parent.reason
        self._stack.append(directory)

    def unwritten(self) -> tuple[Directory, ...]:
        """Return the directories on the way that are not in the layer, the outermost first."""
        return tuple(one for one in self._stack if not one.written)

    def finish(self) -> None:
        """Read the base to its end, which is where its damage is found."""
        while self._record is not None:
            self._next()

    def _enter_unchanged(self, record: BaselineRecord) -> None:
        path = record.entry.path
        if path[: max(path.rfind(b"/"), 0)] == self.parent.path:
            self.enter(unchanged(record))

    def _next(self) -> None:
        self._record = next(self._records, None)
        if self._record is not None:
            self._key = order_key(self._record.entry.path)
            if self._last is not None and self._key <= self._last:
                raise InternalError(f"The base is not in order at {self._record.entry.path!r}.")
            self._last = self._key


def unchanged(record: BaselineRecord) -> Directory:
    """Describe a directory as the base has it."""
    base = record.entry
    return Directory(
        path=base.path,
        mode=base.mode,
        uid=base.uid,
        gid=base.gid,
        mtime=bounded_time(base.mtime),
        xattrs=kept_attributes(record.xattrs),
        reason=reason_to_leave_out(base.path, directory=True),
    )
