"""Writes a layer to files: compresses it, hashes it, and puts its two parts together. Blocks; knows no frames.

Files are written into one directory and go with a failure. The compressed layer is one frame of zstd or one member of
gzip, or two where there are whiteouts: readers take what follows a frame for more of the same. Only in that case the
hash of the tar is made at the end, by unpacking the body again: what it begins with is known last.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from pathlib import Path
from typing import Final, Protocol

import zstandard
from typing_extensions import override

from sandboxd.images.layer_content import Spool
from sandboxd.images.tar_entries import END

LAYER: Final = "layer"
"""The finished file."""
BODY: Final = "layer.body"
"""The second part, while a first one may come."""
FILES: Final = (LAYER, BODY)
ZSTD_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
GZIP_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD_LEVEL: Final = 3
GZIP_LEVEL: Final = 6
_BLOCK: Final = 1 << 18
"""What is compressed at once, whatever pieces it came in: so these do not show in the result."""


class FileSpool(Spool):
    """A spool in a file without a name, which ends with its process."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - `close` closes it
        self._size = 0

    @override
    def append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file.fileno(), view, self._size)
            self._size += written
            view = view[written:]

    @override
    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), min(size, self._size - offset), offset)

    @override
    def truncate(self, size: int) -> None:
        self._file.truncate(size)
        self._size = size

    def close(self) -> None:
        """Give the space back."""
        self._file.close()


class LayerFile:
    """A layer that is being written. Call `close` in any case."""

    def __init__(self, directory: Path, *, zstd: bool) -> None:
        """Begin.

        Args:
            directory: Has none of `FILES`.
            zstd: Else gzip.
        """
        self._directory = directory
        self._zstd = zstd
        self._body = _Part(directory / BODY, zstd=zstd)
        self._head: _Part | None = None

    @property
    def compressed_bytes(self) -> int:
        """How much is written."""
        return self._body.compressed_bytes + (0 if self._head is None else self._head.compressed_bytes)

    def body(self, data: bytes) -> None:
        """Take the next bytes of the second part."""
        self._body.write(data)

    def head(self, data: bytes) -> None:
        """Take the next bytes of the first part."""
        if self._head is None:
            self._head = _Part(self._directory / LAYER, zstd=self._zstd)
            self._body.hashed = False  # of no use any more
        self._head.write(data)

    def finish(self) -> tuple[str, str]:
        """End the archive; return the digests of the file and of the tar in it."""
        self._body.write(END)
        self._body.end()
        if self._head is None:
            (self._directory / BODY).rename(self._directory / LAYER)
            return _digest(self._body.compressed_hash), _digest(self._body.hash)
        self._head.end()
        tar, layer = self._head.hash, self._head.compressed_hash
        with (self._directory / BODY).open("rb") as body, (self._directory / LAYER).open("ab") as whole:
            expand = zstandard.ZstdDecompressor().decompressobj() if self._zstd else zlib.decompressobj(31)
            while data := body.read(_BLOCK):
                whole.write(data)
                layer.update(data)
                tar.update(expand.decompress(data))
            tar.update(expand.flush())
        (self._directory / BODY).unlink()
        return _digest(layer), _digest(tar)

    def close(self) -> None:
        """Close all files."""
        self._body.close()
        if self._head is not None:
            self._head.close()


class _Compressor(Protocol):
    """What zstandard and zlib have in common."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Part:
    """Bytes that are compressed into a file, and hashed on both sides."""

    def __init__(self, path: Path, *, zstd: bool) -> None:
        self._file = path.open("wb", buffering=0)
        self._compressor = _zstd() if zstd else _gzip()
        self._waiting = bytearray()
        self.hash = hashlib.sha256()
        self.hashed = True
        self.compressed_hash = hashlib.sha256()
        self.compressed_bytes = 0

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._waiting += data
        while len(self._waiting) >= _BLOCK:
            block = bytes(self._waiting[:_BLOCK])
            del self._waiting[:_BLOCK]
            self._compress(block)

    def end(self) -> None:
        """Write what is left."""
        self._compress(bytes(self._waiting))
        self._waiting.clear()
        self._put(self._compressor.flush())
        self._file.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _compress(self, block: bytes) -> None:
        if self.hashed:
            self.hash.update(block)
        self._put(self._compressor.compress(block))

    def _put(self, data: bytes) -> None:
        self.compressed_hash.update(data)
        self.compressed_bytes += len(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


def _zstd() -> _Compressor:
    # All that shapes the result is given, and nothing of the machine: one thread, and no size, which is not known.
    parameters = zstandard.ZstdCompressionParameters.from_level(
        ZSTD_LEVEL, write_content_size=False, write_checksum=False, threads=0
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compressobj()


def _gzip() -> _Compressor:
    return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)  # with gzip's header, in which zlib has the time 0


def _digest(hashed: hashlib._Hash) -> str:
    return f"sha256:{hashed.hexdigest()}"
