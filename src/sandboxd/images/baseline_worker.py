"""The process that makes a base's entries of its layers: `python -m sandboxd.images.baseline_worker`.

It has no network, no credentials and no environment of the service. From stdin come a `Job` and then the layers'
blobs, one after the other; to stdout goes one line of JSON: how many entries it has written, or what is wrong.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

from sandboxd.images.baseline_file import write_records
from sandboxd.images.layer_reading import LayerStream, entries_in
from sandboxd.images.layer_tree import LayerTree
from sandboxd.model.errors import SandboxdError
from sandboxd.model.image_errors import ImageInvalidError

NICENESS: Final = 10
MEMORY_BYTES: Final = 1 << 30
"""Most address space: the interpreter's 60 MiB, a zstd window of 128 MiB, SQLite's 32 MiB, and room."""
TAR_BYTES: Final = 64 << 30
"""Most bytes of all layers' tars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be made."""

    file: str
    """Where the entries are written."""
    scratch: str
    """Where the tree is while it grows; removed at the end."""
    sizes: list[int]
    """Of the blobs, in bytes, the base's first."""
    diff_ids: list[str]
    """What their tars must have."""
    told: bool
    """Only what the layers tell themselves, whatever lies below them: their paths, no base."""

    def to_line(self) -> bytes:
        """As it is sent."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Read it."""
        return cls(**json.loads(line))


class _Blob:
    """The next blob in a stream."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, size: int) -> bytes:
        piece = self._stream.read(min(size, self._left))
        if not piece and self._left:
            raise EOFError("the service has gone")
        self._left -= len(piece)
        return piece


def run(job: Job, stream: BinaryIO) -> int:
    """Make the file; return how many entries it has.

    Raises:
        ImageInvalidError: A layer is not what the image says, or cannot be applied.
    """
    scratch = Path(job.scratch)
    limit = TAR_BYTES
    try:
        with LayerTree(scratch) as tree:
            for size, diff_id in zip(job.sizes, job.diff_ids, strict=True):
                blob = _Blob(stream, size)
                layer = LayerStream(blob.read, limit=limit)
                tree.begin_layer()
                for entry in entries_in(layer):
                    tree.apply(entry)
                while blob.read(1 << 16):
                    pass
                if layer.diff_id != diff_id:
                    raise ImageInvalidError(f"A layer is not what the image says: {layer.diff_id}, and not {diff_id}.")
                limit -= layer.tell()
            return write_records(Path(job.file), tree.records(told=job.told))
    finally:
        scratch.unlink(missing_ok=True)


def main() -> int:
    """Work off the one job of this process."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stream = sys.stdin.buffer
    answer: dict[str, int | str]
    try:
        answer = {"entries": run(Job.from_line(stream.readline()), stream)}
    except SandboxdError as error:
        answer = {"invalid": error.message}
    except (OSError, sqlite3.Error) as error:
        answer = {"failed": str(error)}
    except MemoryError:
        answer = {"invalid": "The image's layers need more memory than they may have to be read."}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
