"""When the volumes of a terminated sandbox may go: the set that has all of how it ended, proven and not assumed."""

from __future__ import annotations

from collections.abc import Sequence

from sandboxd.model.backup import BackupMethod, BackupSet, BackupSetStatus, Consistency
from sandboxd.model.backup_spec import ENDED_INCARNATION
from sandboxd.model.errors import WrongStateError
from sandboxd.model.sandbox import Sandbox, SandboxState


class VolumesStayError(WrongStateError):
    """The content of a volume would stay although it is released; the message says what to do."""

    reason = "VOLUMES_STAY"


def has_end_of(backup: BackupSet, sandbox: Sandbox) -> bool:
    """Tell whether a set has all that the sandbox's volumes had when it ended, and is as it was written.

    Not one by snapshots: they are the volumes' own storage's, and nobody has read them.
    """
    return (
        sandbox.state is SandboxState.TERMINATED
        and backup.sandbox == sandbox.id
        and backup.method is BackupMethod.FILES
        and backup.status is BackupSetStatus.COMPLETE
        and backup.consistency is Consistency.QUIESCED
        and sandbox.incarnation is not None
        and backup.spec.get(ENDED_INCARNATION) == sandbox.incarnation
        and backup.checksum == backup.sum()
    )


def end_among(sets: Sequence[BackupSet], sandbox: Sandbox) -> BackupSet | None:
    """Return the set that a sandbox's volumes may be released for; None: they stay.

    The first one that was begun: a restore that failed halfway may have changed what later ones were taken of.
    """
    fitting = [one for one in sets if has_end_of(one, sandbox)]
    return min(fitting, key=lambda one: (one.create_time, one.id)) if fitting else None
