"""What work on volumes came to, as JSON between whoever does it in a pod of its own and whoever asked for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sandboxd.model.backup import BackupSetId, SnapshotId, TreeComparison, Volume, VolumeSnapshot
from sandboxd.model.backup_errors import (
    BackupDamagedError,
    BackupIncompleteError,
    BackupPasswordLostError,
    BackupPasswordWrongError,
    BackupRepositoryBusyError,
    BackupSnapshotNotFoundError,
    BackupSnapshotsUnsupportedError,
    BackupStorageFullError,
    BackupStorageUnavailableError,
    BackupToolError,
)
from sandboxd.model.errors import DeadlineError, InvalidRequestError, SandboxdError
from sandboxd.volumes.listing import StraySets
from sandboxd.volumes.placing import RestorePathBlockedError
from sandboxd.volumes.ports import ForgottenSnapshots, RestoredTree, TakenVolumes

Json = dict[str, Any]
"""An object of JSON. Any: JSON."""
_TOLD: Final[Sequence[type[SandboxdError]]] = (
    BackupDamagedError,
    BackupIncompleteError,
    BackupPasswordLostError,
    BackupPasswordWrongError,
    BackupRepositoryBusyError,
    BackupSnapshotNotFoundError,
    BackupSnapshotsUnsupportedError,
    BackupStorageFullError,
    BackupStorageUnavailableError,
    BackupToolError,
    DeadlineError,
    InvalidRequestError,
    RestorePathBlockedError,
)
"""Errors that a caller can act on, by their constant words."""


def taken_as_mapping(taken: TakenVolumes) -> Json:
    """Volumes that were taken."""
    return {
        "takeTime": taken.take_time.isoformat(),
        "volumes": [
            {
                "volume": one.volume.value,
                "snapshot": one.snapshot,
                "tree": one.tree,
                "files": one.files,
                "bytes": one.bytes,
                "addedBytes": one.added_bytes,
                "vanished": one.vanished,
                **({"driver": one.driver, "handle": one.handle} if one.handle else {}),
            }
            for one in taken.volumes
        ],
    }


def taken_from_mapping(given: Mapping[str, Any]) -> TakenVolumes:
    """Read it. Raises KeyError, TypeError or ValueError where it is none."""
    volumes = [
        VolumeSnapshot(
            volume=Volume(one["volume"]),
            snapshot=SnapshotId(one["snapshot"]),
            tree=str(one["tree"]),
            files=int(one["files"]),
            bytes=int(one["bytes"]),
            added_bytes=int(one["addedBytes"]),
            vanished=int(one["vanished"]),
            driver=str(one.get("driver", "")),
            handle=str(one.get("handle", "")),
        )
        for one in given["volumes"]
    ]
    return TakenVolumes(take_time=datetime.fromisoformat(given["takeTime"]), volumes=volumes)


def restored_as_mapping(restored: RestoredTree) -> Json:
    """Volumes that were brought back."""
    return {"entries": restored.entries, "bytes": restored.bytes}


def restored_from_mapping(given: Mapping[str, Any]) -> RestoredTree:
    """Read it. Raises KeyError, TypeError or ValueError where it is none."""
    return RestoredTree(entries=int(given["entries"]), bytes=int(given["bytes"]))


def proved_as_mapping(trees: Mapping[SnapshotId, str]) -> Json:
    """Snapshots that were read, with the tree of each."""
    return {"trees": dict(trees)}


def proved_from_mapping(given: Mapping[str, Any]) -> Mapping[SnapshotId, str]:
    """Read it; a worker that knows nothing of it has read none. Raises KeyError, TypeError or ValueError."""
    return {SnapshotId(name): str(tree) for name, tree in (given or {"trees": {}})["trees"].items()}


def compared_as_mapping(compared: Mapping[Volume, TreeComparison]) -> Json:
    """How volumes compare with snapshots."""
    return {
        volume.value: {
            "entries": one.entries,
            "bytes": one.bytes,
            "expected": one.expected,
            "found": one.found,
            "differences": [*one.differences],
            "differenceCount": one.difference_count,
        }
        for volume, one in compared.items()
    }


def compared_from_mapping(given: Mapping[str, Any]) -> Mapping[Volume, TreeComparison]:
    """Read it. Raises KeyError, TypeError or ValueError where it is none."""
    return {
        Volume(name): TreeComparison(
            entries=int(one["entries"]),
            bytes=int(one["bytes"]),
            expected=str(one["expected"]),
            found=str(one["found"]),
            differences=tuple(map(str, one["differences"])),
            difference_count=int(one["differenceCount"]),
        )
        for name, one in given.items()
    }


def forgotten_as_mapping(forgotten: ForgottenSnapshots) -> Json:
    """Snapshots that are no more."""
    return {"snapshots": [*forgotten.snapshots], "left": forgotten.left}


def forgotten_from_mapping(given: Mapping[str, Any]) -> ForgottenSnapshots:
    """Read it; of a repository that never was there is nothing to read. Raises KeyError, TypeError or ValueError."""
    if not given:
        return ForgottenSnapshots(snapshots=(), left=0)
    return ForgottenSnapshots(snapshots=tuple(SnapshotId(one) for one in given["snapshots"]), left=int(given["left"]))


def strays_as_mapping(strays: StraySets) -> Json:
    """Sets that nobody named."""
    return {"sets": dict(strays.sizes), "more": strays.more}


def strays_from_mapping(given: Mapping[str, Any]) -> StraySets:
    """Read it; of a repository that never was there is nothing to read. Raises KeyError, TypeError or ValueError."""
    if not given:
        return StraySets(sizes={})
    return StraySets(
        sizes={BackupSetId(name): int(size) for name, size in given["sets"].items()}, more=int(given["more"])
    )


def error_as_mapping(error: SandboxdError) -> Json:
    """Why it was not done."""
    return {"reason": error.reason, "message": error.message}


def error_of(reason: str, message: str) -> SandboxdError:
    """The error of a word; one that is not known is the tool's."""
    kind = next((one for one in _TOLD if one.reason == reason), BackupToolError)
    return kind(message)
