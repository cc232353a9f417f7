"""The data directory of a development stack: who holds it, and where things are in it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class HomeTakenError(Exception):
    """Another stack runs on this data directory; the text says which."""


class DevHome:
    """Names in a data directory."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    @property
    def postgres(self) -> Path:
        """The embedded PostgreSQL."""
        return self.path / "postgres"

    @property
    def logs(self) -> Path:
        """One log file for each process."""
        return self.path / "logs"

    @property
    def token(self) -> Path:
        """A ready-made token, renewed while the stack runs."""
        return self.path / "token"

    @property
    def notice(self) -> Path:
        """Where the stack is, for sandboxctl; there while it runs."""
        return self.path / "dev.json"

    def make(self) -> None:
        """Make the directories, for this person alone."""
        # Root's embedded PostgreSQL runs as another user and must be able to pass through: x for all, r for none.
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        self.logs.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory: one stack at a time.

        Raises:
            HomeTakenError: Another one runs here.
        """
        # The kernel lets go when the holder dies, however it dies.
        with (self.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip()
                raise HomeTakenError(self._taken(holder)) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            try:
                yield
            finally:
                self.notice.unlink(missing_ok=True)

    def announce(self, facts: dict[str, str]) -> None:
        """Write where the stack is."""
        write_private(self.notice, json.dumps(facts, indent=2) + "\n")

    def _taken(self, holder: str) -> str:
        try:
            address = f" at {json.loads(self.notice.read_text())['address']}"
        except (OSError, ValueError, KeyError):
            address = ""
        who = f" (process {holder}{address})" if holder else address
        return f"A stack runs on {self.path} already{who}. Use it, end it, or name another directory with --data-dir."


def write_private(path: Path, text: str) -> None:
    """Write a file that only this person can read; readers see the old content or the new, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)
