"""A repository of restic's for each client, each with a password of its own.

On a disk: `<directory>/<client>`; with S3: `<prefix>/<client>`. Passwords are files of 0600 in a directory that should
not lie where the repositories do. **Without them nobody reads the backups.**
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import structlog

from sandboxd.backends.restic.child import ResticSettings
from sandboxd.backends.restic.repository import ResticRepository
from sandboxd.model.backup_errors import BackupPasswordLostError, BackupPasswordWrongError
from sandboxd.model.ids import ClientId
from sandboxd.volumes.trees import within

PASSWORD_BYTES: Final = 32
"""Of randomness: as much as the key that restic derives."""

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class ResticRepositories:
    """Implements `ClientRepositories` of the local backend."""

    settings: ResticSettings
    """Of all; `location` and `work` are the directories that have one for each client. The password's file is not
    used."""
    passwords: Path
    """One file for each client."""
    _open: dict[ClientId, ResticRepository] = field(default_factory=dict, init=False)

    async def open(self, client: ClientId, *, timeout: timedelta) -> ResticRepository:
        """Return a client's repository; made where it is not there.

        Raises:
            BackupPasswordLostError: It is there, and its password is not.
        """
        if (known := self._open.get(client)) is not None:
            return known
        made = await asyncio.to_thread(self._make_password, client)
        repository = self._repository(client)
        try:
            await repository.prepare(timeout=timeout)
        except BackupPasswordWrongError as error:
            if not made:
                raise
            self._password(client).unlink(missing_ok=True)  # for the one that opens it, which somebody may have
            raise self._lost(client) from error
        self._open[client] = repository
        return repository

    async def reopen(self, client: ClientId, *, timeout: timedelta) -> ResticRepository:
        """Return the repository of a client who has something in it.

        Raises:
            BackupPasswordLostError: There is no password.
        """
        if (found := await self.find(client, timeout=timeout)) is not None:
            return found
        raise self._lost(client)

    async def find(self, client: ClientId, *, timeout: timedelta) -> ResticRepository | None:
        """Return a client's repository, or None where it never had one."""
        if not self._password(client).exists():
            return None
        return await self.open(client, timeout=timeout)

    async def destroy(self, client: ClientId, *, timeout: timedelta) -> None:
        """Remove all content, then the password; what the storage keeps of it by itself nobody reads any more."""
        async with within(timeout) as left:
            repository = await self.find(client, timeout=left())
            if repository is not None:
                there = await repository.list(timeout=left())
                await repository.forget([one.id for one in there], timeout=left())
                await repository.prune(timeout=left())
        self._open.pop(client, None)
        if not self.settings.location.startswith("s3:"):
            await asyncio.to_thread(shutil.rmtree, Path(self.settings.location) / client, ignore_errors=True)
        await asyncio.to_thread(shutil.rmtree, self.settings.work / client, ignore_errors=True)
        self._password(client).unlink(missing_ok=True)
        log.info("backup.repository_destroyed", client=client)

    def _repository(self, client: ClientId) -> ResticRepository:
        return ResticRepository(
            replace(
                self.settings,
                location=f"{self.settings.location.rstrip('/')}/{client}",
                work=self.settings.work / client,
                password_file=self._password(client),
            )
        )

    def _lost(self, client: ClientId) -> BackupPasswordLostError:
        return BackupPasswordLostError(
            f"The file {client} with the password of its backups is gone (SANDBOXD_BACKUPS_PASSWORDS_DIR), and nothing "
            "else opens them. Put it back from a copy, and try again. No other password was kept in its place.",
            client=client,
        )

    def _password(self, client: ClientId) -> Path:
        return self.passwords / client

    def _make_password(self, client: ClientId) -> bool:
        """Make it, durable and whole, if nobody has; another process may do the same. True: this one made it."""
        self.passwords.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = self._password(client)
        if target.exists():
            return False
        draft = self.passwords / f".{client}-{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(PASSWORD_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, target)
            except FileExistsError:
                return False
            directory = os.open(self.passwords, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        finally:
            draft.unlink(missing_ok=True)
        return True
