"""One run of restic: a small environment, bounded output, a deadline, and no process that stays.

The password and the storage's keys are named by file; neither argv nor the environment holds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from sandboxd.model.backup_errors import BackupStorageUnavailableError, BackupToolError
from sandboxd.model.errors import DeadlineError

log = structlog.get_logger(__name__)

Message = Mapping[str, Any]  # Any: restic's JSON; `answers.py` says what is read of it
_LINE_BYTES: Final = 1 << 20
"""Of one line of progress or of an error; a thousand times the longest seen."""
OUTPUT_BYTES: Final = 64 << 20
"""Of an answer that is kept whole: a listing of some 80,000 snapshots."""
_KEPT_COMPLAINTS: Final = 50
_RETRIES: Final = "retrying after"
"""What it says each time a storage did not answer, or answered with an error."""
_CHUNK: Final = 1 << 16
_GRACE_SECONDS: Final = 10.0
"""How long an interrupted restic may take to remove its lock; seen: below 1."""
_REAP_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResticSettings:
    """Where the repository is, and what opens it."""

    location: str
    """An absolute directory, or `s3:http(s)://host/bucket/prefix`."""
    password_file: Path
    work: Path
    """A directory of this process alone, on a disk: restic's cache of indexes and its temporary files."""
    program: str = "restic"
    """0.17 or newer."""
    s3_credentials_file: Path | None = None
    """In the form of `~/.aws/credentials`, profile `default`."""
    upload_kibibytes: int = 0
    """A second, at most, to the storage; 0: no bound. Of each run."""
    download_kibibytes: int = 0


@dataclass(slots=True, kw_only=True)
class Ended:
    """What a run came to."""

    code: int
    output: bytes = b""
    """All of stdout, where nobody took its messages."""
    complaints: list[Message] = field(default_factory=list)
    """The last of stderr's messages, and of stdout's that are errors."""

    def text(self) -> str:
        """All complaints in one, for looking words up."""
        return "\n".join(_text(one) for one in self.complaints)


class ResticChild:
    """Starts restic."""

    def __init__(self, settings: ResticSettings) -> None:
        self._settings = settings

    async def run(
        self,
        *arguments: str | bytes,
        timeout: timedelta,
        directory: Path | None = None,
        on_message: Callable[[Message], None] | None = None,
        keep: bool = True,
        output: int | None = None,
    ) -> Ended:
        """Run it to its end. Whoever is cancelled meanwhile interrupts it, so that its lock goes with it.

        Args:
            arguments: A command and what belongs to it.
            timeout: For all of it.
            directory: Where it runs.
            on_message: Takes the JSON of each line of stdout and stderr as it comes; without it stdout is kept.
            keep: Else stdout is read and thrown away, however much it is.
            output: A file descriptor that stdout goes into instead; it stays open here.

        Raises:
            BackupToolError: It cannot be started, or says more than any restic does.
            BackupStorageUnavailableError: The time was over while it tried to reach its storage.
            DeadlineError: The time was over.
        """
        process = await self._start(arguments, directory, PIPE if output is None else output)
        ended = Ended(code=-1)
        scope = asyncio.timeout(timeout.total_seconds())
        try:
            async with scope, asyncio.TaskGroup() as group:
                group.create_task(_read_out(process, ended, on_message, keep=keep), name="restic answers")
                group.create_task(_read_complaints(process, ended, on_message), name="restic complaints")
                ended.code = await process.wait()
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None  # a reader's own, or the caller's: the other only ended with it
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise _too_slow(ended, timeout) from error
        finally:
            await _end(process)
        return ended

    async def _start(self, arguments: Sequence[str | bytes], directory: Path | None, output: int) -> Process:
        s = self._settings
        limits = [
            f"--limit-{way}={rate}"
            for way, rate in (("upload", s.upload_kibibytes), ("download", s.download_kibibytes))
            if rate
        ]
        for name in ("cache", "tmp"):
            (s.work / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return await asyncio.create_subprocess_exec(
                s.program,
                *limits,
                *arguments,
                stdin=DEVNULL,
                stdout=output,
                stderr=PIPE,
                cwd=directory or s.work,
                env=self._environment(),
                start_new_session=True,
            )
        except OSError as error:
            log.warning("backup.tool_not_started", program=s.program, error=str(error))
            raise BackupToolError(
                "restic, which keeps the backups, cannot be started on this machine: it must be installed, or named by"
                " SANDBOXD_BACKUPS_RESTIC."
            ) from error

    def _environment(self) -> dict[str, str]:
        s = self._settings
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "TZ": "UTC",
            "RESTIC_REPOSITORY": s.location,
            "RESTIC_PASSWORD_FILE": str(s.password_file),
            "RESTIC_CACHE_DIR": str(s.work / "cache"),
            "RESTIC_PROGRESS_FPS": "1",
            "TMPDIR": str(s.work / "tmp"),
            "GOMAXPROCS": "2",  # a service has sessions to stream meanwhile
        }
        if s.s3_credentials_file is not None:
            environment["AWS_SHARED_CREDENTIALS_FILE"] = str(s.s3_credentials_file)
        return environment


async def _read_out(
    process: Process, ended: Ended, on_message: Callable[[Message], None] | None, *, keep: bool
) -> None:
    pipe = process.stdout
    if pipe is None:
        return
    if not keep:
        await _drain(pipe)
        return
    if on_message is None:
        kept = bytearray()
        while piece := await pipe.read(_CHUNK):
            kept += piece
            if len(kept) > OUTPUT_BYTES:
                raise BackupToolError("restic answered with more than an answer can be.")
        ended.output = bytes(kept)
        return
    async for message in _messages(pipe):
        on_message(message)


async def _read_complaints(process: Process, ended: Ended, on_message: Callable[[Message], None] | None) -> None:
    pipe = process.stderr
    assert pipe is not None
    async for message in _messages(pipe):
        if _RETRIES in _text(message) and not any(_RETRIES in _text(one) for one in ended.complaints):
            log.warning("backup.storage_retried", complaint=_text(message)[-500:])  # once: it goes on for long
        ended.complaints.append(message)
        del ended.complaints[:-_KEPT_COMPLAINTS]
        if on_message is not None:
            on_message(message)


async def _messages(pipe: asyncio.StreamReader) -> AsyncIterator[Message]:
    """The JSON of each line; what is none is passed on as a text, and what is too long is cut."""
    rest = bytearray()
    while piece := await pipe.read(_CHUNK):
        rest += piece
        *lines, last = rest.split(b"\n")
        for line in lines:
            if line.strip():
                yield _message(bytes(line))
        rest = bytearray(last[:_LINE_BYTES])
    if rest.strip():
        yield _message(bytes(rest))


def _message(line: bytes) -> Message:
    try:
        read = json.loads(line)
    except ValueError:
        read = None
    return read if isinstance(read, dict) else {"message_type": "text", "message": line.decode("utf-8", "replace")}


def _text(message: Message) -> str:
    error = message.get("error")
    inner = error.get("message", "") if isinstance(error, dict) else ""
    return f"{message.get('message', '')} {inner}"


def _too_slow(ended: Ended, timeout: timedelta) -> DeadlineError | BackupStorageUnavailableError:
    # restic tries again for a quarter of an hour where a storage does not answer, and says so each time.
    if _RETRIES in ended.text():
        log.warning("backup.storage_away", complaint=ended.text()[-500:])
        return BackupStorageUnavailableError(
            "The storage of the backups does not answer. Try again later.", retry_after=timedelta(minutes=1)
        )
    return DeadlineError(f"The repository of backups was not done within {timeout.total_seconds():.0f} s.")


async def _end(process: Process) -> None:
    """Let no process stay: an interrupt first, after which restic removes its lock."""
    if process.returncode is not None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                await _reap(process)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REAP_SECONDS):
                    await _reap(process)


async def _reap(process: Process) -> None:
    """Wait for its end, which is told only after all that it said was read."""
    await asyncio.gather(_drain(process.stdout), _drain(process.stderr), process.wait())


async def _drain(pipe: asyncio.StreamReader | None) -> None:
    while pipe is not None and await pipe.read(_CHUNK):
        pass
