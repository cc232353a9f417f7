"""One layer from its frames to its file: what the worker does, and whoever has time to block. No process, no pipe."""

from __future__ import annotations

import contextlib

from sandboxd.images.baseline_file import read_records
from sandboxd.images.layer import Layer
from sandboxd.images.layer_file import FILES, GZIP_TYPE, LAYER, ZSTD_TYPE, FileSpool, LayerFile
from sandboxd.images.ports import LayerOrder, WrittenLayer
from sandboxd.model.rootfs import CaptureFrame


class LayerJob:
    """Writes one layer. Give it all frames, then call `finish`; call `close` in any case."""

    def __init__(self, order: LayerOrder) -> None:
        """Open the files.

        Args:
            order: What and where.

        Raises:
            BaselineDamagedError: The baseline cannot be read; it may also show in the middle.
            OSError: The directory cannot be written to; also in the middle.
        """
        self._order = order
        self._written = False
        with contextlib.ExitStack() as stack:
            stack.callback(self._remove)
            spool = FileSpool(order.directory)
            stack.callback(spool.close)
            self._file = LayerFile(order.directory, zstd=order.zstd)
            stack.callback(self._file.close)
            self._layer = Layer(
                read_records(order.baseline.file),
                limits=order.limits,
                secrets=order.secrets,
                spool=spool,
                head=self._file.head,
                body=self._file.body,
            )
            self._open_files = stack.pop_all()

    def take(self, frame: CaptureFrame) -> None:
        """Take the next frame. Raises what `Layer.take` does, and `ImageTooLargeError` of what is compressed."""
        self._layer.take(frame)
        if self._file.compressed_bytes > self._order.limits.compressed_bytes:
            raise self._layer.refuse("compressed_bytes")

    def finish(self) -> WrittenLayer:
        """Complete the file. Raises as `take` does, and `CaptureInvalidError` where the end has not come."""
        counts = self._layer.finish()
        digest, diff_id = self._file.finish()
        compressed_bytes = self._file.compressed_bytes
        if compressed_bytes > self._order.limits.compressed_bytes:
            raise self._layer.refuse("compressed_bytes")
        self._written = True
        return WrittenLayer(
            file=self._order.directory / LAYER,
            media_type=ZSTD_TYPE if self._order.zstd else GZIP_TYPE,
            digest=digest,
            diff_id=diff_id,
            raw_bytes=counts.raw_bytes,
            compressed_bytes=compressed_bytes,
            entries=counts.entries,
            largest=counts.largest,
            left_out=counts.left_out,
            scanned=counts.scanned,
        )

    def close(self) -> None:
        """Close all files. What `finish` has returned stays, and nothing else."""
        self._open_files.close()

    def _remove(self) -> None:
        if not self._written:
            remove_files(self._order)


def remove_files(order: LayerOrder) -> None:
    """Remove what a failed job may have left in the directory."""
    for name in FILES:
        (order.directory / name).unlink(missing_ok=True)
