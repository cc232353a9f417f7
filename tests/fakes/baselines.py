"""What images have, in memory: content by path, told as the entries of the real cache."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import count
from pathlib import Path

from typing_extensions import override

from sandboxd.images.baseline_file import write_records
from sandboxd.images.ports import Baseline, Baselines, ImageReference
from sandboxd.model.errors import SandboxdError
from sandboxd.model.rootfs import BaselineEntry, BaselineRecord, EntryKind, order_key

Files = Mapping[bytes, bytes]


class FakeBaselines(Baselines):
    """Answers what a test says is in an image, by its digest; nothing else is in it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bases-")
        self._numbers = count(1)
        self.bases: dict[str, Files] = {}
        self.layers: dict[str, Files] = {}
        self.error: SandboxdError | None = None

    @override
    async def baseline(self, base: ImageReference, *, timeout: timedelta) -> Baseline:
        return self._write("base", base.digest, self.bases.get(base.digest, {}))

    @override
    async def layer(self, image: ImageReference, *, base: ImageReference, timeout: timedelta) -> Baseline:
        return self._write("layer", image.digest, self.layers.get(image.digest, {}))

    @override
    async def layer_paths(self, image: ImageReference, *, base: ImageReference, timeout: timedelta) -> Sequence[bytes]:
        return sorted(self.layers.get(image.digest, {}), key=order_key)

    def _write(self, what: str, digest: str, files: Files) -> Baseline:
        if self.error is not None:
            raise self.error
        # One for each call: who still reads an earlier one, in a thread, must find it whole.
        path = Path(self._directory.name) / f"{what}-{digest.removeprefix('sha256:')}-{next(self._numbers)}"
        entries = write_records(path, [a_record(name, files[name]) for name in sorted(files, key=order_key)])
        return Baseline(file=path, entries=entries)


def a_record(path: bytes, content: bytes = b"") -> BaselineRecord:
    """A plain file."""
    entry = BaselineEntry(path=path, kind=EntryKind.FILE, mode=0o644, uid=0, gid=0, size=len(content))
    return BaselineRecord(entry=entry, sha256=hashlib.sha256(content).digest())
