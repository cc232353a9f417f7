"""Restore drills: a backup set brought back into a sandbox that is nobody's, booted, and compared byte for byte.

A backup that nobody has ever restored is a hope. What a drill says is about one set at one moment; who says nothing
(the cluster was full, the storage away) is ABANDONED, and the set has its turn again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, NewType

from sandboxd.model.backup import BackupSetId, RestoreId, Volume
from sandboxd.model.errors import ConflictError, ErrorKind, NotFoundError, SandboxdError, WrongStateError
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SandboxId

DrillId = NewType("DrillId", str)


class DrillTrigger(enum.Enum):
    """Why there is a drill."""

    SCHEDULE = "schedule"
    REQUEST = "request"
    """Somebody called RunDrill."""


class DrillStatus(enum.Enum):
    """What a drill has come to."""

    RUNNING = "running"
    PASSED = "passed"
    """It booted, and everything in its volumes was as the set has it."""
    FAILED = "failed"
    """The set cannot be restored, does not boot, or came back otherwise."""
    ABANDONED = "abandoned"
    """It could not be carried out: nothing is said of the set."""


class DrillStep(enum.Enum):
    """What a drill does, in this order."""

    RESTORE = "restore"
    BOOT = "boot"
    """A life of it is started from the set's image, and its agent says who it is."""
    COMPARE = "compare"
    CLEAR = "clear"
    """What the drill made is destroyed."""


ENDS: Final = frozenset({DrillStatus.PASSED, DrillStatus.FAILED, DrillStatus.ABANDONED})
CANNOT: Final = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.TOO_SLOW, ErrorKind.EXHAUSTED, ErrorKind.CONFLICT})
"""Kinds of errors that say nothing of the set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrilledVolume:
    """How one volume came back."""

    volume: Volume
    entries: int
    """Files, directories, links and pipes that were compared, the root among them."""
    bytes: int
    """Of contents that were read from both sides."""
    expected: str
    """SHA-256 over all that is compared, as the repository has it."""
    found: str
    """The same of the restored volume, after it was booted."""
    differences: Sequence[str] = ()
    """Some of them."""
    difference_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """One drill."""

    id: DrillId
    backup: BackupSetId
    sandbox: SandboxId
    """Whose set it is."""
    client: ClientId
    freelancer: FreelancerId
    trigger: DrillTrigger
    request_id: RequestId | None = None
    """Of the RunDrill that asked for it."""
    status: DrillStatus = DrillStatus.RUNNING
    cancelled: bool = False
    """Somebody wishes that it ends. Written apart from the rest; the version does not grow."""
    attempts: int = 1
    image: str = ""
    """What it booted; empty: the template's."""
    volumes: Sequence[DrilledVolume] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each step took."""
    failure: str = ""
    """Why it did not pass: the constant word of the error."""
    failure_message: str = ""
    create_time: datetime
    update_time: datetime
    end_time: datetime | None = None
    version: int = 1
    """Grows with every write."""

    @property
    def in_flight(self) -> bool:
        """True while it goes on."""
        return self.status is DrillStatus.RUNNING

    def begun_again(self) -> Drill:
        """Return it begun once more."""
        return replace(self, attempts=self.attempts + 1, version=self.version + 1)

    def end(
        self,
        status: DrillStatus,
        *,
        at: datetime,
        error: SandboxdError | None = None,
        volumes: Sequence[DrilledVolume] = (),
        seconds: Mapping[str, float] | None = None,
        image: str = "",
    ) -> Drill:
        """Return it as it has ended.

        Raises:
            DrillEndedError: It had ended before.
        """
        if self.status is not DrillStatus.RUNNING:
            raise DrillEndedError(f"The drill {self.id} has ended.", drill=self.id)
        return replace(
            self,
            status=status,
            volumes=tuple(volumes),
            seconds=dict(seconds or {}),
            image=image,
            failure="" if error is None else error.reason,
            failure_message="" if error is None else error.message,
            update_time=at,
            end_time=at,
            version=self.version + 1,
        )


class DrillEndedError(WrongStateError):
    """The drill has ended already."""

    reason = "DRILL_ENDED"


class DrillNotFoundError(NotFoundError):
    """There is no such drill."""

    reason = "DRILL_NOT_FOUND"

    def __init__(self, drill: str) -> None:
        super().__init__(f"Drill {drill} does not exist.", drill=drill)


class DrillInProgressError(ConflictError):
    """A drill runs: one at a time."""

    reason = "DRILL_IN_PROGRESS"


class DrillDiffersError(WrongStateError):
    """What came back is not what was backed up."""

    reason = "DRILL_DIFFERS"


class NothingToDrillError(NotFoundError):
    """No complete backup set is small enough for a drill, or there is none."""

    reason = "NOTHING_TO_DRILL"


def drill_sandbox(drill: DrillId) -> SandboxId:
    """Return the id of the sandbox that a drill works in: its own in other letters, and no row's."""
    return SandboxId(f"sbx{drill.removeprefix('drl')}")


def drill_restore(drill: DrillId) -> RestoreId:
    """Return what its restore is asked for by."""
    return RestoreId(f"rst{drill.removeprefix('drl')}")


def drill_comparison(drill: DrillId) -> RestoreId:
    """Return what its comparison is asked for by."""
    return RestoreId(f"cmp{drill.removeprefix('drl')}")
