"""What restic says, in our words: its errors by exit code and by the words it uses, its snapshots, a tree's root.

The exit codes are documented since 0.17 (restic's manual, "Scripting"); of the texts only stable parts are looked for,
and what is not known is a `BackupToolError`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from sandboxd.backends.restic.child import Ended
from sandboxd.model.backup import SnapshotId
from sandboxd.model.backup_errors import (
    BackupDamagedError,
    BackupPasswordWrongError,
    BackupRepositoryBusyError,
    BackupSnapshotNotFoundError,
    BackupStorageFullError,
    BackupStorageUnavailableError,
    BackupToolError,
)
from sandboxd.model.errors import SandboxdError
from sandboxd.volumes.ports import TreeSnapshot

log = structlog.get_logger(__name__)

INCOMPLETE: Final = 3
ABSENT: Final = 10
LOCKED: Final = 11
PASSWORD: Final = 12
VANISHED: Final = "no such file or directory"
_FULL: Final = ("no space left on device", "disk quota exceeded", "quotaexceeded", "storagefull", "entitytoolarge")
_AWAY: Final = (
    "connection refused",
    "connection reset",
    "no such host",
    "i/o timeout",
    "network is unreachable",
    "no route to host",
    "input/output error",
    "stale file handle",
    "transport endpoint is not connected",
    "read-only file system",
    "permission denied",
    "access denied",
    "accessdenied",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "service unavailable",
    "bucket does not exist",
)
_DAMAGED: Final = (
    "ciphertext verification failed",
    "does not match",
    "hash mismatch",
    "invalid data returned",
    "unexpected size",
    "not found in index",
    "not found in repository",
    "unexpected eof",
    "repository contains errors",
    "the repository is damaged",
    "file does not exist",
    VANISHED,
    "unable to load index",
    "invalid header",
    "pack file cannot be listed",
)
_MOMENT: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)")
_SET_UID, _SET_GID, _STICKY = 1 << 23, 1 << 22, 1 << 20
"""Of Go's `fs.FileMode`, which restic writes."""


def failure(ended: Ended) -> SandboxdError:
    """Say what an exit code other than 0 means."""
    text = ended.text().lower()
    log.warning("backup.restic_failed", code=ended.code, complaint=text[-500:])
    found = _by_code(ended.code)
    if found is not None:
        return found
    if any(word in text for word in _FULL):
        return BackupStorageFullError("There is no room left for backups. Make room, then try again.")
    if any(word in text for word in _AWAY):
        return BackupStorageUnavailableError(
            "The storage of the backups does not answer, or refuses. Try again later.", retry_after=timedelta(minutes=1)
        )
    if "could not find snapshot" in text or "no matching id found" in text:
        return BackupSnapshotNotFoundError("There is no such snapshot in the repository of backups.")
    if any(word in text for word in _DAMAGED):
        return BackupDamagedError("The repository of backups is damaged: some content is missing, or is not its own.")
    return BackupToolError("The program that keeps the backups has failed. Try again.")


def _by_code(code: int) -> SandboxdError | None:
    match code:
        case 10:
            return BackupStorageUnavailableError(
                "There is no repository of backups: it was not made yet, or its storage is not there.",
                retry_after=timedelta(minutes=1),
            )
        case 11:
            return BackupRepositoryBusyError(
                "Another process works on the repository of backups. Try again when it has ended.",
                retry_after=timedelta(minutes=1),
            )
        case 12:
            return BackupPasswordWrongError("The password does not open the repository of backups.")
        case _:
            return None


def json_of(ended: Ended) -> Any:  # Any: restic's JSON
    """Read an answer. Raises BackupToolError where it is none."""
    try:
        return json.loads(ended.output)
    except ValueError as error:
        raise BackupToolError("The program that keeps the backups gave an answer that is none.") from error


def snapshot_in(said: Mapping[str, Any]) -> TreeSnapshot:  # Any: restic's JSON
    """Read one of `restic snapshots --json`. Raises BackupToolError where it is none."""
    try:
        summary = said.get("summary") or {}
        tags = dict(tag.split("=", 1) for tag in said.get("tags") or () if "=" in tag)
        return TreeSnapshot(
            id=SnapshotId(said["id"]),
            source=said["hostname"],
            take_time=_time(said["time"]),
            tree=said["tree"],
            files=summary.get("total_files_processed", 0),
            bytes=summary.get("total_bytes_processed", 0),
            added_bytes=summary.get("data_added_packed", 0),
            tags=tags,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BackupToolError("The program that keeps the backups lists a snapshot that is none.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A tree's own directory, as it was."""

    name: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[str, bytes]


def root_in(said: Mapping[str, Any]) -> Root:  # Any: restic's JSON
    """Read the one entry above a tree. Raises BackupToolError where it is another."""
    try:
        (node,) = said["nodes"]
        if node["type"] != "dir":
            raise ValueError("no directory")
        attributes = node.get("extended_attributes") or ()
        return Root(
            name=node["name"],
            mode=mode_of(node["mode"]),
            uid=node.get("uid", 0),
            gid=node.get("gid", 0),
            mtime_ns=nanoseconds(node["mtime"]),
            xattrs={one["name"]: base64.b64decode(one["value"] or "") for one in attributes},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BackupToolError("The program that keeps the backups shows a tree that is none of ours.") from error


def mode_of(said: int) -> int:
    """Return the twelve bits of a mode, of which Go keeps three elsewhere."""
    bits = (said & 0o777) | (0o4000 if said & _SET_UID else 0) | (0o2000 if said & _SET_GID else 0)
    return bits | (0o1000 if said & _STICKY else 0)


def nanoseconds(text: str) -> int:
    """Read a moment in UTC. Raises ValueError where it is none."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError(f"no moment: {text!r}")
    seconds = int(datetime.fromisoformat(found[1]).replace(tzinfo=UTC).timestamp())
    return seconds * 10**9 + int((found[2] or "0").ljust(9, "0"))


def _time(text: str) -> datetime:
    return datetime.fromtimestamp(nanoseconds(text) // 1000 / 10**6, UTC)
