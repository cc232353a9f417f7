"""Keeps the clients' API keys as files in a directory that the gateway reads (`key_files.py`). Writes, never reads.

For each client up to three files: its key, `.PREVIOUS` (the key before, which stands in for a while) and `.UNTIL` (the
generation of the last change, and until when the previous key may be used). The names are those that a Kubernetes
Secret can hold as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from typing_extensions import override

from sandboxd.manager.key_ports import KeyStore
from sandboxd.model.api_key import PREVIOUS, UNTIL, KeyMark, key_entry_name
from sandboxd.model.errors import StaleOwnerError, UnavailableError
from sandboxd.model.ids import ClientId

MODE: Final = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPaths:
    """The files of one client."""

    directory: Path
    client: ClientId

    @property
    def current(self) -> Path:
        """The key."""
        return self.directory / key_entry_name(self.client)

    @property
    def previous(self) -> Path:
        """The key before."""
        return self.directory / f"{key_entry_name(self.client)}{PREVIOUS}"

    @property
    def until(self) -> Path:
        """Generation, and the end of the previous key's time."""
        return self.directory / f"{key_entry_name(self.client)}{UNTIL}"

    def read_mark(self) -> KeyMark:
        """Which change was the last one."""
        try:
            return KeyMark.load(self.until.read_bytes()[:4096])
        except OSError:
            return KeyMark()


class DirectoryKeyStore(KeyStore):
    """Keys in a directory, mode 0600, each replaced in one step."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @override
    async def put(
        self, client: ClientId, key: str, *, generation: int, keep_previous_until: datetime | None = None
    ) -> None:
        await self._on_disk(lambda: self._put(client, key, generation, keep_previous_until))

    @override
    async def remove(self, client: ClientId, *, generation: int) -> int:
        removed = 0

        def remove() -> None:
            nonlocal removed
            paths = self._fence(client, generation)
            for path in (paths.current, paths.previous):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                    removed += 1
            self._write(paths.until, KeyMark(generation=generation).dump())

        await self._on_disk(remove)
        return removed

    def _put(self, client: ClientId, key: str, generation: int, until: datetime | None) -> None:
        paths = self._fence(client, generation)
        # The same change again after a crash: the present file may hold the new key already, and must not be taken for
        # the previous one.
        if paths.read_mark().generation != generation:
            with contextlib.suppress(FileNotFoundError):
                paths.previous.unlink()
            if until is not None:
                self._link(paths.current, paths.previous)
            self._write(paths.until, KeyMark(generation=generation, until=until).dump())
        self._write(paths.current, key)

    def _fence(self, client: ClientId, generation: int) -> KeyPaths:
        paths = KeyPaths(directory=self._directory, client=client)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if paths.read_mark().generation > generation:
            raise StaleOwnerError(f"A later change of the key of client {client} was made.", client=client)
        return paths

    def _link(self, source: Path, target: Path) -> None:
        draft = self._draft(target)
        try:
            os.link(source, draft)  # a second name for the old key's file; its text is not read
        except FileNotFoundError:
            return
        draft.replace(target)

    def _write(self, path: Path, text: str) -> None:
        draft = self._draft(path)
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()

    def _draft(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")

    async def _on_disk(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(work)
        except OSError as error:
            # Without the file's name: it is the client's, and nothing of the key is in an OSError.
            raise UnavailableError(f"The key store cannot be written ({error.strerror}).") from None
