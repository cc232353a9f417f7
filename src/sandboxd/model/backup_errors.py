"""What can go wrong with a repository of backups."""

from __future__ import annotations

from sandboxd.model.errors import (
    ErrorKind,
    ExhaustedError,
    FieldViolation,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    SandboxdError,
    UnavailableError,
    WrongStateError,
)
from sandboxd.model.ids import SandboxId


class BackupSnapshotNotFoundError(NotFoundError):
    """The repository of backups has no such snapshot, or not that path in it."""

    reason = "BACKUP_SNAPSHOT_NOT_FOUND"


class BackupStorageUnavailableError(UnavailableError):
    """What the repository of backups lies on does not answer, is not there, or takes nothing now; try again."""

    reason = "BACKUP_STORAGE_UNAVAILABLE"


class BackupStorageFullError(ExhaustedError):
    """There is no room: on the repository's storage, or where something is to be restored."""

    reason = "BACKUP_STORAGE_FULL"


class BackupPasswordWrongError(SandboxdError):
    """The password does not open the repository of backups, or there is none; who operates it has to look."""

    kind = ErrorKind.WRONG_STATE
    reason = "BACKUP_PASSWORD_WRONG"


class BackupPasswordLostError(WrongStateError):
    """What opens the client's repository of backups is gone. Only a copy of it helps: another one opens nothing."""

    reason = "BACKUP_PASSWORD_LOST"


class BackupDamagedError(SandboxdError):
    """The repository of backups lacks content, or has other content than it stored; what it tells is not used."""

    kind = ErrorKind.WRONG_STATE
    reason = "BACKUP_DAMAGED"


class BackupRepositoryBusyError(UnavailableError):
    """Another process that lives works on the repository of backups; try again when it has ended."""

    reason = "BACKUP_REPOSITORY_BUSY"


class BackupIncompleteError(UnavailableError):
    """Not every file could be read or written; the message names some, and nothing half is kept as a snapshot."""

    reason = "BACKUP_INCOMPLETE"


class BackupNotQuiescedError(WrongStateError):
    """The sandbox did not stand still for its backup as was required: it is in use, or takes longer than allowed."""

    reason = "BACKUP_NOT_QUIESCED"


class BackupToolError(UnavailableError):
    """The program that keeps backups is not there, is too old, or ended in a way that it does not document."""

    reason = "BACKUP_TOOL_FAILED"


class BackupSnapshotsUnsupportedError(WrongStateError):
    """The cluster, or the driver of the sandbox's volumes, makes no snapshots; the message says what is missing."""

    reason = "BACKUP_SNAPSHOTS_UNSUPPORTED"


class BackupPathsUnsupportedError(WrongStateError):
    """The backup is a snapshot of whole volumes: nobody can look into it without restoring all of it."""

    reason = "BACKUP_PATHS_UNSUPPORTED"

    def __init__(self) -> None:
        super().__init__(
            "This backup has snapshots of whole volumes, which come back as a whole alone. Restore without paths; what "
            "the volumes have now is backed up first."
        )


class BackupUnreadError(WrongStateError):
    """The backup is a snapshot of the volumes' own storage: nobody reads it but who restores it."""

    reason = "BACKUP_UNREAD"

    def __init__(self) -> None:
        super().__init__(
            "This backup has snapshots by the volumes' own storage, which are read with a restore alone: nothing is "
            "given up because of it."
        )


class BackupMethodOffError(WrongStateError):
    """The backup was made by a method that this installation is not set up for any more."""

    reason = "BACKUP_METHOD_OFF"

    def __init__(self, method: str) -> None:
        super().__init__(
            f"This installation cannot work on backups that were made by the method {method} any more: "
            + {
                "files": "SANDBOXD_BACKUPS_LOCATION must say where their repositories are.",
                "snapshots": "they are snapshots of volumes in a cluster, which SANDBOXD_BACKEND=kubernetes reaches.",
            }[method],
            method=method,
        )


class BackupsOffError(WrongStateError):
    """This installation keeps no backups; `SANDBOXD_BACKUPS_LOCATION` says where they would lie."""

    reason = "BACKUPS_OFF"


class BackupUnnamedError(InvalidRequestError):
    """A sandbox that is not terminated can be restored from several backups, and nobody said from which."""

    reason = "BACKUP_UNNAMED"

    def __init__(self, sandbox: SandboxId, state: str) -> None:
        super().__init__(
            f"Sandbox {sandbox} is {state}: say from which of its backups it is to be restored.",
            violations=[FieldViolation(field="backup", description="names one of its backups")],
            sandbox=sandbox,
        )


class BackupCancelledError(SandboxdError):
    """Somebody ended the backup before it was done. Nothing of it can be restored."""

    kind = ErrorKind.CONFLICT
    reason = "BACKUP_CANCELLED"


class RestoreCancelledError(SandboxdError):
    """Somebody ended the restore before anything took its place: the sandbox is as it was."""

    kind = ErrorKind.CONFLICT
    reason = "RESTORE_CANCELLED"


class RestoreTooLateError(WrongStateError):
    """What comes back takes its place already, or has taken it: the restore goes on to its end."""

    reason = "RESTORE_TOO_LATE"

    def __init__(self, sandbox: SandboxId) -> None:
        super().__init__(
            f"What comes back into sandbox {sandbox} takes its place now: the restore is not cancelled any more. What "
            "was there before is in a backup.",
            sandbox=sandbox,
        )


class BackupAbandonedError(UnavailableError):
    """The backup was begun again after crashes, and broke off every time; try again."""

    reason = "BACKUP_ABANDONED"


class BackupEndedError(WrongStateError):
    """The backup has ended already; there is nothing to cancel."""

    reason = "BACKUP_ENDED"


class BackupHomeError(ForbiddenError):
    """The backup's home and image are another freelancer's; its workspace alone may come into somebody's sandbox."""

    reason = "BACKUP_HOME_OF_ANOTHER"


class NothingToBackUpError(WrongStateError):
    """The sandbox is being made or restored: what it will have is not there yet."""

    reason = "NOTHING_TO_BACK_UP"
