"""The process that writes one layer: `python -I -m sandboxd.images.layer_worker`, with frames at its standard input.

It has no secret, and neither time nor memory without end. What it is sent comes from a sandbox and may be anything. It
answers with one line, and ends with its input: whoever started it need only be gone.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import traceback
from collections.abc import Callable
from typing import BinaryIO, Final

from sandboxd.images.layer_job import LayerJob
from sandboxd.images.layer_wire import decode_order, encode_failure, encode_layer, frames
from sandboxd.images.ports import LayerOrder
from sandboxd.model.errors import SandboxdError

NICENESS: Final = 5
"""As the walk at the other end has it: nobody waits for a commit as for an echo."""
ADDRESS_BYTES: Final = 1 << 30
"""Of address space, of which less than half is used with as many entries as there may be."""
SLACK_BYTES: Final = 64 << 20
"""Beyond what files may have by the order: headers, and what compression adds where nothing can be compressed."""
NO_SPACE: Final = "NO_SPACE"
CRASHED: Final = "CRASHED"
_ORDER_BYTES: Final = 1 << 16
_TRACEBACK_LETTERS: Final = 4000


def main() -> int:
    """Write the layer and answer. The exit code says nothing."""
    order, cpu_seconds = decode_order(sys.stdin.buffer.readline(_ORDER_BYTES))
    _bound(order, cpu_seconds)
    answer = run(order, sys.stdin.buffer)
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    return 0


def run(order: LayerOrder, source: BinaryIO, *, job: Callable[[LayerOrder], LayerJob] = LayerJob) -> bytes:
    """Write the layer that the frames make; return the answer, whatever happens.

    Args:
        order: What and where.
        source: Of frames.
        job: For tests of what goes wrong in it.
    """
    try:
        made = job(order)
        try:
            for frame in frames(source.read):
                made.take(frame)
            return encode_layer(made.finish())
        finally:
            made.close()
    except SandboxdError as error:
        return encode_failure(type(error).__name__, error.message, error.metadata)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return encode_failure(NO_SPACE, os.strerror(error.errno or 0), {})
        return _crashed()
    except Exception:  # noqa: BLE001 - the end of a process: what is not answered is lost
        return _crashed()


def _crashed() -> bytes:
    return encode_failure(CRASHED, traceback.format_exc()[-_TRACEBACK_LETTERS:], {})


def _bound(order: LayerOrder, cpu_seconds: int) -> None:
    files = 2 * order.limits.raw_bytes + SLACK_BYTES  # the spool: what is held back, and the present file
    for limit, most in (
        (resource.RLIMIT_AS, ADDRESS_BYTES),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, files),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (bound, bound))
    os.nice(NICENESS)


if __name__ == "__main__":
    sys.exit(main())
