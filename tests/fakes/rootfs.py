"""A root file system in memory and its capture, for whoever needs differences and no sandbox."""

import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from typing_extensions import override

from sandboxd.images.ports import RootfsCapture
from sandboxd.model.errors import DeadlineError, UnavailableError
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.rootfs import (
    BaselineEntry,
    CaptureEnd,
    CaptureFrame,
    ChangedEntry,
    DeletedPath,
    EntryKind,
    FileData,
    FileEnd,
    SkippedPath,
    walk_key,
)

BLOCK_BYTES = 1 << 18


@dataclass(slots=True, kw_only=True)
class FakeRootfsCapture(RootfsCapture):
    """Captures what a test has put here. Everything put here after `begin` counts as changed."""

    incarnation: IncarnationId
    entries: dict[bytes, BaselineEntry] = field(default_factory=dict)
    contents: dict[bytes, bytes] = field(default_factory=dict)
    touched: set[bytes] = field(default_factory=set)
    skipped: dict[bytes, str] = field(default_factory=dict)
    """Reasons by path; what is there is not sent."""
    failure: Exception | None = None
    """Raised in place of the end."""
    captures: int = 0

    def put(self, path: bytes, content: bytes | None = None, *, mode: int = 0o644) -> None:
        """Write a file, or make a directory where there is no content; parents are made."""
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            parent = b"/".join(parts[:depth])
            if parent not in self.entries:
                self.put(parent, mode=0o755)
        kind = EntryKind.DIRECTORY if content is None else EntryKind.FILE
        size = len(content or b"")
        self.entries[path] = BaselineEntry(path=path, kind=kind, mode=mode, uid=0, gid=0, size=size)
        self.contents[path] = content or b""
        self.touched.add(path)

    def remove(self, path: bytes) -> None:
        """Remove it with all below."""
        for other in [*self.entries]:
            if other == path or other.startswith(path + b"/"):
                del self.entries[other]

    def begin(self) -> list[BaselineEntry]:
        """Take what is there for the base, and return it."""
        self.touched.clear()
        return sorted(self.entries.values(), key=lambda entry: walk_key(entry.path))

    @override
    async def capture(
        self,
        sandbox: SandboxId,
        incarnation: IncarnationId,
        baseline: AsyncIterator[BaselineEntry],
        *,
        previous: Sequence[bytes],
        exclude: Sequence[bytes],
        timeout: timedelta,
    ) -> AsyncGenerator[CaptureFrame, None]:
        self.captures += 1
        deadline = time.monotonic() + timeout.total_seconds()
        if incarnation != self.incarnation:
            raise UnavailableError(f"Incarnation {incarnation} of sandbox {sandbox} does not run.", sandbox=sandbox)
        left_out = dict.fromkeys(exclude, "excluded") | self.skipped
        base = {entry.path: entry async for entry in baseline if entry.path}  # the root is nobody's change
        changed = deleted = content_bytes = 0
        for path in sorted({*base, *self.entries}, key=walk_key):
            above = _above(path)
            if any(one in left_out for one in above):
                continue
            if path in left_out:
                if path in self.entries:
                    yield SkippedPath(path=path, reason=left_out[path])
            elif path not in self.entries:
                parent = self.entries.get(above[-1]) if above else None
                if not above or (parent is not None and parent.kind is EntryKind.DIRECTORY):
                    deleted += 1
                    yield DeletedPath(path)
            elif path in self.touched or path in previous or base.get(path) != self.entries[path]:
                changed += 1
                content_bytes += len(self.contents[path])
                for frame in self._send(path):
                    yield frame
        if self.failure is not None:
            raise self.failure
        if time.monotonic() >= deadline:
            raise DeadlineError("The capture did not end in time.")
        yield CaptureEnd(entries=len(self.entries), changed=changed, deleted=deleted, bytes=content_bytes)

    def _send(self, path: bytes) -> list[CaptureFrame]:
        entry, content = self.entries[path], self.contents[path]
        first = ChangedEntry(path=path, kind=entry.kind, mode=entry.mode, uid=entry.uid, gid=entry.gid, size=entry.size)
        if entry.kind is not EntryKind.FILE:
            return [first]
        blocks = [FileData(content[at : at + BLOCK_BYTES]) for at in range(0, len(content), BLOCK_BYTES)]
        return [first, *blocks, FileEnd(size=len(content), sha256=hashlib.sha256(content).digest())]


def _above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:depth]) for depth in range(1, len(parts))]
