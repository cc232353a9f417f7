"""Trees of files in a repository of restic's: implements `BackupRepository`.

What restic does not do by itself is done here: a tree's own directory gets its mode, owner and attributes back; the
locks of processes that died are removed, and no others; what a run that broke off had stored is found by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from typing_extensions import override

from sandboxd.backends.restic.answers import (
    ABSENT,
    INCOMPLETE,
    LOCKED,
    VANISHED,
    Root,
    failure,
    json_of,
    root_in,
    snapshot_in,
)
from sandboxd.backends.restic.child import Ended, Message, ResticChild, ResticSettings
from sandboxd.backends.restic.comparisons import compare_contents, compare_entries
from sandboxd.backends.restic.naming import check_ids, check_words
from sandboxd.backends.restic.trees import SHOWN, checked_tree, dress, is_there, make_empty
from sandboxd.model.backup import SnapshotId, TreeComparison
from sandboxd.model.backup_errors import (
    BackupIncompleteError,
    BackupPasswordWrongError,
    BackupSnapshotNotFoundError,
    BackupStorageFullError,
    BackupToolError,
)
from sandboxd.model.errors import DeadlineError
from sandboxd.volumes.comparing import TreeComparing
from sandboxd.volumes.paths import check_path
from sandboxd.volumes.ports import (
    STAGING,
    BackupProgress,
    BackupRepository,
    ForgottenSnapshots,
    RestoredTree,
    TreeSnapshot,
)

log = structlog.get_logger(__name__)

_LEAST_VERSION: Final = (0, 17)
"""Documented exit codes, errors as JSON, parts of snapshots."""
_WILD: Final = re.compile(rb"([*?\[\]\\])")


class ResticRepository(BackupRepository):
    """One repository."""

    def __init__(self, settings: ResticSettings) -> None:
        self._settings = settings
        self._child = ResticChild(settings)
        self._running: set[str] = set()

    @override
    async def prepare(self, *, timeout: timedelta) -> None:
        async with _within(timeout) as left:
            self._check_password()
            await self._check_version(left())
            ended = await self._child.run("cat", "config", timeout=left())
            if ended.code == ABSENT:
                made = await self._child.run("init", "--json", timeout=left())
                # Somebody else may have made it meanwhile: then it opens, or says why not.
                ended = await self._child.run("cat", "config", timeout=left())
                if ended.code == ABSENT:
                    raise failure(made)
            if ended.code != 0:
                raise failure(ended)

    def expect_leftovers(self) -> None:
        """Let the next snapshot take up what a run has stored that broke off elsewhere: its mark went with its disk."""
        self._marks.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._marks / "elsewhere").touch()

    @override
    async def snapshot(
        self,
        tree: Path,
        *,
        source: str,
        tags: Mapping[str, str],
        timeout: timedelta,
        progress: Callable[[BackupProgress], None],
    ) -> TreeSnapshot:
        check_words(source, tags)
        tree = checked_tree(tree)
        async with _within(timeout) as left:
            await self._take_up(left())
            with self._marked():
                listener = _Listener(progress)
                named = [word for name, value in tags.items() for word in ("--tag", f"{name}={value}")]
                ended = await self._run(
                    "backup",
                    "--json",
                    "--one-file-system",
                    "--group-by=host",
                    f"--host={source}",
                    b"--exclude=" + _escaped(os.fsencode(tree / STAGING)) + b"*",
                    *named,
                    "--",
                    tree.name,
                    timeout=left(),
                    directory=tree.parent,
                    on_message=listener.take,
                )
                if ended.code not in {0, INCOMPLETE} or not listener.snapshot:
                    raise failure(ended)
            if listener.unread:
                await self.forget([listener.snapshot], timeout=left())
                raise _incomplete("read", listener, ended)
            taken = await self._one(listener.snapshot, timeout=left())
        return replace(taken, vanished=tuple(listener.vanished), vanished_count=listener.vanished_count)

    @override
    async def list(
        self, *, source: str | None = None, tags: Mapping[str, str] | None = None, timeout: timedelta
    ) -> Sequence[TreeSnapshot]:
        tags = tags or {}
        check_words(source if source is not None else "any", tags)
        narrowed = [] if source is None else [f"--host={source}"]
        if tags:
            narrowed.append("--tag=" + ",".join(f"{name}={value}" for name, value in tags.items()))
        ended = await self._run("snapshots", "--json", "--no-lock", *narrowed, timeout=timeout)
        if ended.code != 0:
            raise failure(ended)
        return sorted((snapshot_in(one) for one in json_of(ended) or ()), key=lambda one: (one.take_time, one.id))

    @override
    async def restore(
        self,
        snapshot: SnapshotId,
        into: Path,
        *,
        paths: Sequence[bytes] = (),
        timeout: timedelta,
        progress: Callable[[BackupProgress], None],
    ) -> RestoredTree:
        check_ids([snapshot])
        for path in paths:
            check_path(path)
        make_empty(into)
        async with _within(timeout) as left:
            root = await self._root_of(snapshot, timeout=left())
            listener = _Listener(progress)
            ended = await self._run(
                "restore",
                "--json",
                "--sparse",
                f"--target={into}",
                *(word for path in paths for word in (b"--include", b"/" + _escaped(path))),
                f"{snapshot}:/{root.name}",
                timeout=left(),
                on_message=listener.take,
            )
            if ended.code != 0:
                found = failure(ended)
                if isinstance(found, BackupToolError) and listener.unread:
                    raise _incomplete("written", listener, ended)
                raise found
            lost = [path for path in paths if not is_there(into, path)]
            if lost:
                shown = ", ".join(repr(os.fsdecode(path)) for path in lost[:SHOWN])
                raise BackupSnapshotNotFoundError(f"The backup has no {shown}.", snapshot=snapshot)
            await asyncio.to_thread(dress, into, root)
        return RestoredTree(entries=listener.entries, bytes=listener.bytes)

    @override
    async def compare(
        self, snapshot: SnapshotId, tree: Path, *, timeout: timedelta, progress: Callable[[BackupProgress], None]
    ) -> TreeComparison:
        check_ids([snapshot])
        loop = asyncio.get_running_loop()  # contents are read in a thread
        comparing = TreeComparing(tree, progress=lambda so_far: loop.call_soon_threadsafe(progress, so_far))
        async with _within(timeout) as left:
            await self._one(snapshot, timeout=left())  # which tells that there is none from one that is damaged
            await compare_entries(partial(self._run, timeout=left()), snapshot, comparing)
            await compare_contents(partial(self._child.run, timeout=left()), snapshot, comparing)
        return await asyncio.to_thread(comparing.result)

    @override
    async def verify(self, *, content: bool, timeout: timedelta) -> None:
        ended = await self._run("check", "--json", *(["--read-data"] if content else []), timeout=timeout)
        if ended.code != 0:
            raise failure(ended)

    @override
    async def read(self, snapshot: SnapshotId, *, timeout: timedelta) -> TreeSnapshot:
        check_ids([snapshot])
        async with _within(timeout) as left:
            found = await self._one(snapshot, timeout=left())
            # As an archive that nobody keeps: every piece is fetched, decrypted and held against its own name.
            ended = await self._run("dump", "--archive=tar", snapshot, "/", timeout=left(), keep=False)
        if ended.code != 0:
            raise failure(ended)
        return found

    @override
    async def forget(self, snapshots: Sequence[SnapshotId], *, timeout: timedelta) -> ForgottenSnapshots:
        check_ids(snapshots)
        async with _within(timeout) as left:
            there = {one.id for one in await self.list(timeout=left())}
            wanted = sorted(there & set(snapshots))
            if wanted:
                ended = await self._run("forget", "--json", *wanted, timeout=left())
                if ended.code != 0:
                    raise failure(ended)
                there = {one.id for one in await self.list(timeout=left())}
            if there & set(snapshots):
                raise BackupToolError("The repository of backups still lists what it was to forget. Try again.")
        return ForgottenSnapshots(snapshots=tuple(snapshots), left=len(there))

    @override
    async def prune(self, *, timeout: timedelta) -> None:
        ended = await self._run("prune", "--max-unused=0", timeout=timeout)
        if ended.code != 0:
            raise failure(ended)
        self._unmark(self._broken_off())  # with what nobody needs went what they left

    async def _run(
        self,
        *arguments: str | bytes,
        timeout: timedelta,
        directory: Path | None = None,
        on_message: Callable[[Message], None] | None = None,
        keep: bool = True,
    ) -> Ended:
        """Run it; where a lock is in its way, remove those of dead processes of this machine, and run it once more."""
        async with _within(timeout) as left:
            run = partial(self._child.run, *arguments, directory=directory, on_message=on_message, keep=keep)
            ended = await run(timeout=left())
            if ended.code == LOCKED and await self._unlock(left()):
                ended = await run(timeout=left())
        return ended

    async def _unlock(self, timeout: timedelta) -> bool:
        """Remove stale locks: restic's own rule is that their process is dead, or did not renew them for 30 min."""
        ended = await self._child.run("unlock", timeout=timeout)
        removed = re.search(rb"removed (\d+) lock", ended.output)
        if ended.code != 0 or removed is None or removed[1] == b"0":
            return False
        log.info("backup.locks_healed", locks=int(removed[1]))
        return True

    async def _take_up(self, timeout: timedelta) -> None:
        """Put what broken runs had stored into the index, so that the next one does not store it again."""
        broken = self._broken_off()
        if not broken:
            return
        ended = await self._run("repair", "index", timeout=timeout)
        if ended.code == LOCKED:
            return  # another snapshot runs; the one after that will find it
        if ended.code != 0:
            raise failure(ended)
        self._unmark(broken)

    def _broken_off(self) -> Sequence[str]:
        """Marks that runs left which do not run any more."""
        with contextlib.suppress(FileNotFoundError):
            return sorted({path.name for path in self._marks.iterdir()} - self._running)
        return ()

    def _unmark(self, marks: Sequence[str]) -> None:
        for mark in marks:
            (self._marks / mark).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _marked(self) -> Iterator[None]:
        """Leave a mark for the next snapshot if this one does not come to its end."""
        mark = secrets.token_hex(8)
        self._marks.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._marks / mark).touch()
        self._running.add(mark)
        try:
            yield
            self._unmark([mark])
        finally:
            self._running.discard(mark)

    @property
    def _marks(self) -> Path:
        return self._settings.work / "running"

    async def _one(self, snapshot: SnapshotId, *, timeout: timedelta) -> TreeSnapshot:
        ended = await self._run("snapshots", "--json", "--no-lock", snapshot, timeout=timeout)
        if ended.code != 0:
            raise failure(ended)
        for one in json_of(ended) or ():
            return snapshot_in(one)
        raise BackupSnapshotNotFoundError("There is no such snapshot.", snapshot=snapshot)

    async def _root_of(self, snapshot: SnapshotId, *, timeout: timedelta) -> Root:
        ended = await self._run("cat", "tree", "--no-lock", snapshot, timeout=timeout)
        if ended.code != 0:
            raise failure(ended)
        return root_in(json_of(ended))

    def _check_password(self) -> None:
        try:
            empty = not self._settings.password_file.read_bytes().strip()
        except OSError:
            empty = True
        if empty:
            raise BackupPasswordWrongError("The file with the password of the backups is not there, or is empty.")

    async def _check_version(self, timeout: timedelta) -> None:
        ended = await self._child.run("version", timeout=timeout)
        found = re.match(rb"restic (\d+)\.(\d+)", ended.output)
        if found is None or (int(found[1]), int(found[2])) < _LEAST_VERSION:
            raise BackupToolError("restic, which keeps the backups, must be 0.17 or newer.")


class _Listener:
    """Takes what a run says on its way."""

    def __init__(self, progress: Callable[[BackupProgress], None]) -> None:
        self._progress = progress
        self.snapshot = SnapshotId("")
        self.entries = 0
        self.bytes = 0
        self.vanished: list[str] = []
        self.vanished_count = 0
        self.unread: list[str] = []
        """Paths with other troubles, some."""

    def take(self, message: Message) -> None:
        match message.get("message_type"):
            case "status":
                self._progress(
                    BackupProgress(
                        files=message.get("files_done", message.get("files_restored", 0)),
                        total_files=message.get("total_files", 0),
                        bytes=message.get("bytes_done", message.get("bytes_restored", 0)),
                        total_bytes=message.get("total_bytes", 0),
                    )
                )
            case "summary":
                self.snapshot = SnapshotId(message.get("snapshot_id", ""))
                self.entries, self.bytes = message.get("files_restored", 0), message.get("bytes_restored", 0)
            case "error":
                self._error(str(message.get("item", "")), str(message.get("error", "")))
            case _:
                pass

    def _error(self, item: str, error: str) -> None:
        if VANISHED in error:
            self.vanished_count += 1
            self.vanished = [*self.vanished, item][:SHOWN]
        else:
            self.unread = [*self.unread, item][:SHOWN]


def _incomplete(what: str, listener: _Listener, ended: Ended) -> BackupIncompleteError | BackupStorageFullError:
    found = failure(ended)
    if isinstance(found, BackupStorageFullError):
        return found
    paths = ", ".join(repr(path) for path in listener.unread)
    return BackupIncompleteError(f"Not everything could be {what}: {paths}. See to these, then try again.", paths=paths)


def _escaped(path: bytes) -> bytes:
    """A path as a pattern of restic's that fits it alone."""
    return _WILD.sub(rb"\\\1", path)


@asynccontextmanager
async def _within(timeout: timedelta) -> AsyncIterator[Callable[[], timedelta]]:
    """Give what is left of a time, for several runs one after the other."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout.total_seconds()

    def left() -> timedelta:
        seconds = end - loop.time()
        if seconds <= 0:
            raise DeadlineError(f"The repository of backups was not done within {timeout.total_seconds():.0f} s.")
        return timedelta(seconds=seconds)

    yield left
