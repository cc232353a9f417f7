"""What backups need of the database: backup sets, in a unit of work.

Contract suite: `tests/contract/test_backup_sets.py`. What they need of the world is `volumes/ports.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from sandboxd.model.backup import BackupSet, BackupSetId, BackupSetProgress, RestoreId
from sandboxd.model.errors import ConflictError, NotFoundError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.paging import Page

MOST_SETS: Final = 10_000
"""Of one sandbox that retention looks at: the oldest of more are looked at when newer ones are gone."""


class BackupInProgressError(ConflictError):
    """The sandbox is being backed up: one at a time."""

    reason = "BACKUP_IN_PROGRESS"

    def __init__(self, sandbox: SandboxId) -> None:
        super().__init__(
            f"Sandbox {sandbox} is being backed up. Try again when that has ended.",
            sandbox=sandbox,
            retry_after=timedelta(seconds=30),
        )


class BackupSetNotFoundError(NotFoundError):
    """There is no such backup set, or it is somebody else's."""

    reason = "BACKUP_NOT_FOUND"

    def __init__(self, backup: str) -> None:
        super().__init__(f"Backup {backup} does not exist.", backup=backup)


class BackupSetRepository(Protocol):
    """The rows of backup sets."""

    async def begin(self, backup: BackupSet) -> None:
        """Insert one that is CREATING.

        Raises:
            BackupInProgressError: The sandbox has another one that is.
        """
        ...

    async def get(self, backup: BackupSetId, *, for_update: bool = False) -> BackupSet:
        """One set; `for_update` locks the row until the end of the unit of work.

        Raises:
            BackupSetNotFoundError: There is none.
        """
        ...

    async def save(self, backup: BackupSet) -> None:
        """Write a changed one over the row of version `backup.version - 1`; not whether it is cancelled.

        Raises:
            ConflictError: The row has another version.
        """
        ...

    async def note_progress(self, backup: BackupSetId, progress: BackupSetProgress, *, at: datetime) -> None:
        """Write how far one is, while it is CREATING; its version does not grow."""
        ...

    async def cancel(self, backup: BackupSetId) -> None:
        """Write the wish that it ends, while it is CREATING; its version does not grow."""
        ...

    async def list(
        self, client: ClientId, *, sandbox: SandboxId | None = None, deleted: bool, page_size: int, page_token: str
    ) -> Page[BackupSet]:
        """One page of a client's, or of one of its sandboxes, the newest first; DELETED ones only if `deleted`.

        Raises:
            InvalidRequestError: The token is not one of such a list (violation `page_token`).
        """
        ...

    async def of_sandbox(self, sandbox: SandboxId, *, limit: int) -> Sequence[BackupSet]:
        """Those that are not DELETED, the newest first: what retention is told of."""
        ...

    async def newest(self, sandbox: SandboxId) -> BackupSet | None:
        """The newest COMPLETE one, by the moment that it is of: what a restore takes."""
        ...

    async def restoring(self, backup: BackupSetId) -> SandboxId | None:
        """A sandbox that is RESTORING from this set, and has not got back what it has."""
        ...

    async def note_restore(self, sandbox: SandboxId, restore: RestoreId, progress: BackupSetProgress) -> None:
        """Write how far the volumes of a sandbox are that is RESTORING by this very restore; no version grows."""
        ...

    async def unfinished(self, *, limit: int, after: BackupSetId | None = None) -> Sequence[BackupSet]:
        """CREATING and DELETING ones of all sandboxes, by id, after an id."""
        ...

    async def deleting(self, client: ClientId, *, limit: int) -> Sequence[BackupSet]:
        """DELETING ones of a client, by id."""
        ...

    async def pinned(self, *, limit: int, after: str = "") -> Sequence[tuple[str, BackupSetId]]:
        """Images that a set needs which is CREATING or COMPLETE, each once with one of its sets, after an image."""
        ...

    async def due(
        self, *, at: datetime, every: timedelta, retry_before: datetime, limit: int, after: SandboxId | None = None
    ) -> Sequence[SandboxId]:
        """Sandboxes that policy wants backed up again, by id, after an id.

        ACTIVE, hibernated, stopped and paused ones that were made, and whose newest COMPLETE set is, longer ago than
        `every`; that were used since that set; with no set in the making, and none FAILED that was begun since
        `retry_before`. Zero is never; a client's own `backup_every` takes the place of `every`. Not those of clients
        that are being deleted.
        """
        ...

    async def ended(
        self, *, retry_before: datetime, of_end: bool = False, limit: int, after: SandboxId | None = None
    ) -> Sequence[SandboxId]:
        """Terminated sandboxes of whose kept volumes nobody has begun a set since they ended, by id, after an id.

        A set that FAILED before `retry_before` does not count, unless there were no volumes; with `of_end` neither does
        a complete one that does not say of which end it is. Not those of clients that are being deleted, none that was
        erased, and none whose volumes were released.
        """
        ...

    async def to_release(
        self, *, ended_before: datetime | None, limit: int, after: SandboxId | None = None
    ) -> Sequence[SandboxId]:
        """Terminated sandboxes whose volumes may go, by id, after an id.

        Those that ended before a moment and have a COMPLETE, quiesced set of that end (None: no such), and those whose
        release has begun and not ended. Not those of clients that are being deleted, and none that was erased.
        """
        ...

    async def sandboxes(self, *, limit: int, after: SandboxId | None = None) -> Sequence[SandboxId]:
        """Those that have COMPLETE or FAILED sets, by id, after an id."""
        ...

    async def of_owner(
        self, client: ClientId, freelancer: FreelancerId | None, *, limit: int, after: BackupSetId | None = None
    ) -> Sequence[BackupSet]:
        """A client's, or one freelancer's, that are not DELETED, by id, after an id."""
        ...

    async def forget(self, *, before: datetime, limit: int) -> int:
        """Delete rows that are DELETED since before; answers how many."""
        ...
