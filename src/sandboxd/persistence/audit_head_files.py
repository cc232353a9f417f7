"""Signed heads outside the database: lines of JSON in a directory, a file a day, flushed to disk.

Only where the administrators of the database cannot write to the directory (or a copy of it) does it prove anything to
them: see docs/audit.md.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import structlog
from typing_extensions import override

from sandboxd.model.audit import SignedHead, head_line, read_head_line
from sandboxd.model.ids import ClientId
from sandboxd.monitor.audit_ports import HeadExport

log = structlog.get_logger(__name__)


class DirectoryHeadExport(HeadExport):
    """A directory of signed heads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @override
    async def append(self, heads: Sequence[SignedHead]) -> None:
        if heads:
            await asyncio.to_thread(self._append, heads)

    @override
    async def read(self, chain: ClientId) -> AsyncIterator[SignedHead]:
        for file in await asyncio.to_thread(self._files):
            for head in await asyncio.to_thread(_read_heads, file):
                if head.chain == chain:
                    yield head

    def _append(self, heads: Sequence[SignedHead]) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = "".join(head_line(head) + "\n" for head in heads)
        descriptor = os.open(
            self._directory / f"{heads[-1].time:%Y-%m-%d}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        try:
            os.write(descriptor, lines.encode())  # one write: lines of two replicas do not mix
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob("*.jsonl"))


def _read_heads(file: Path) -> list[SignedHead]:
    heads = []
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        try:
            heads.append(read_head_line(line))
        except ValueError:
            # A crash may leave half a line behind; somebody's hand as well.
            log.warning("audit.head_unreadable", file=file.name, line=number)
    return heads
