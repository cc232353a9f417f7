"""A snapshot beside a tree on a disk: restic lists the one and streams its content, the other is looked at meanwhile.

restic writes names into its listing as UTF-8, whatever they are; those that are not are known by the archive alone,
whose times are whole seconds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from sandboxd.backends.restic.answers import failure, mode_of, nanoseconds
from sandboxd.backends.restic.child import Ended, Message
from sandboxd.model.backup import SnapshotId
from sandboxd.model.backup_errors import BackupToolError
from sandboxd.model.errors import SandboxdError
from sandboxd.volumes.comparing import TreeComparing

_LOST: Final = "\ufffd"
"""Stands in a listing for bytes that are no UTF-8."""


class Listing(Protocol):
    """Runs restic and takes its messages."""

    def __call__(self, *arguments: str, on_message: Callable[[Message], None]) -> Awaitable[Ended]:
        """Run it to its end."""
        ...


class Streaming(Protocol):
    """Runs restic with its output going into a file descriptor."""

    def __call__(self, *arguments: str, output: int) -> Awaitable[Ended]:
        """Run it to its end."""
        ...


async def compare_entries(run: Listing, snapshot: SnapshotId, comparing: TreeComparing) -> None:
    """Compare what the listing of a snapshot says of each entry."""
    trouble: list[Exception] = []

    def take(message: Message) -> None:
        if message.get("message_type") != "node" or trouble:
            return
        try:
            _, _, below = str(message["path"]).removeprefix("/").partition("/")
            comparing.entry(
                below.encode(),
                kind=str(message["type"]),
                mode=mode_of(message.get("mode", 0)),  # as of all, a zero is left out
                owner=(message.get("uid", 0), message.get("gid", 0)),
                size=message.get("size", 0),
                mtime_ns=None if _LOST in below else nanoseconds(message["mtime"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            trouble.append(error)

    ended = await run("ls", "--json", "--no-lock", snapshot, on_message=take)
    if ended.code != 0:
        raise failure(ended)
    if trouble:
        raise BackupToolError("The program that keeps the backups lists an entry that is none.") from trouble[0]


async def compare_contents(run: Streaming, snapshot: SnapshotId, comparing: TreeComparing) -> None:
    """Compare every byte of files, every target of links and every attribute."""
    source, sink = os.pipe()
    reading = asyncio.create_task(asyncio.to_thread(_read, source, comparing), name="compare contents")
    try:
        try:
            ended = await run("dump", "--archive=tar", "--no-lock", snapshot, "/", output=sink)
        finally:
            os.close(sink)  # the end of the stream, for who reads it
            await asyncio.wait({reading})
    except SandboxdError:
        reading.exception()
        raise
    if ended.code != 0:
        reading.exception()
        raise failure(ended)
    reading.result()


def _read(source: int, comparing: TreeComparing) -> None:
    with os.fdopen(source, "rb", buffering=1 << 20) as stream:
        comparing.archive(stream)
        while stream.read(1 << 20):  # what pads the archive: who writes it must not find nobody there
            pass
