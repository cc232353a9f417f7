"""A layer's writer without a process: the same rules, in the loop of whoever calls it."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta

from typing_extensions import override

from sandboxd.images.layer_job import LayerJob
from sandboxd.images.ports import BuildProgress, LayerOrder, LayerWriter, WrittenLayer
from sandboxd.model.errors import DeadlineError
from sandboxd.model.rootfs import CaptureEnd, CaptureFrame, CaptureProgress


@dataclass(slots=True, kw_only=True)
class FakeLayerWriter(LayerWriter):
    """Writes real layers of small differences."""

    failure: Exception | None = None
    """Raised in place of the layer, when all has come."""
    written: int = 0

    @override
    async def write(
        self,
        frames: AsyncIterator[CaptureFrame],
        order: LayerOrder,
        *,
        timeout: timedelta,
        progress: Callable[[BuildProgress], None],
    ) -> WrittenLayer:
        job = LayerJob(order)
        try:
            if timeout <= timedelta():
                raise DeadlineError("The layer was not written in time.")
            async for frame in frames:
                job.take(frame)
                if isinstance(frame, CaptureProgress | CaptureEnd):
                    progress(BuildProgress(phase="capture", entries=frame.entries, bytes=frame.bytes))
            if self.failure is not None:
                raise self.failure
            self.written += 1
            return job.finish()
        finally:
            job.close()
