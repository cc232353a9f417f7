"""The service's side of the process that reads layers: blobs go in as they come, and one answer comes out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from sandboxd.images.baseline_worker import Job
from sandboxd.model.errors import InternalError, UnavailableError
from sandboxd.model.image_errors import ImageInvalidError

_ANSWER_BYTES: Final = 64 << 10
_MODULE: Final = "sandboxd.images.baseline_worker"
_PASSED_ON: Final = ("PATH", "LANG", "PYTHONDONTWRITEBYTECODE", "TMPDIR")


async def make_entries(job: Job, blobs: Sequence[AsyncGenerator[bytes, None]]) -> int:
    """Let a process write the job's file, and return how many entries it has. A cancelled one is killed.

    Args:
        job: What to make.
        blobs: The layers as they come; none is opened before it is its turn.

    Raises:
        ImageInvalidError: The layers cannot be read or applied.
        UnavailableError: There is no room for it, or the process was killed.
    """
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        _MODULE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_ANSWER_BYTES,
        env=environment,
    )
    try:
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(_end_of(process.stdout), name="baseline answer")
            complaint = group.create_task(_end_of(process.stderr), name="baseline complaint")
            await _send(process, job, blobs)
            code = await process.wait()
    except BaseExceptionGroup as group_error:
        raise group_error.exceptions[0] from group_error  # only one of the three can fail by itself
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    return _entries_in(answer.result(), code, complaint.result())


async def _send(process: asyncio.subprocess.Process, job: Job, blobs: Sequence[AsyncGenerator[bytes, None]]) -> None:
    stdin = process.stdin
    assert stdin is not None
    # It may end early, and then its answer says why.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stdin.write(job.to_line())
        for blob in blobs:
            async with contextlib.aclosing(blob):
                async for piece in blob:
                    stdin.write(piece)
                    await stdin.drain()
        stdin.close()
        await stdin.wait_closed()


async def _end_of(stream: asyncio.StreamReader | None) -> bytes:
    """Read to the end and keep the last of it."""
    assert stream is not None
    kept = b""
    while piece := await stream.read(_ANSWER_BYTES):
        kept = (kept + piece)[-_ANSWER_BYTES:]
    return kept


def _entries_in(answer: bytes, code: int, complaint: bytes) -> int:
    try:
        said = json.loads(answer)
    except ValueError:
        said = {}
    match said:
        case {"entries": int(entries)}:
            return entries
        case {"invalid": str(text)}:
            raise ImageInvalidError(text)
        case {"failed": str(text)}:
            raise UnavailableError(f"A base image's entries cannot be written: {text}. Look at the cache directory.")
        case _ if code < 0:
            raise UnavailableError(f"The process that reads a base image was ended by signal {-code}. Try again.")
        case _:
            last = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise InternalError(f"The process that reads a base image failed: {last[:500]}")
