"""What restore drills need of the database: their rows, in a unit of work, and which set has its turn.

Contract suite: `tests/contract/test_drills.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from sandboxd.model.backup import BackupSetId
from sandboxd.model.drill import Drill, DrillId
from sandboxd.model.ids import ClientId, FreelancerId, RequestId
from sandboxd.model.paging import Page


class DrillRepository(Protocol):
    """The rows of drills."""

    async def begin(self, drill: Drill) -> None:
        """Insert one that is RUNNING.

        Raises:
            DrillInProgressError: Another one is: of an installation there is one at a time.
        """
        ...

    async def get(self, drill: DrillId, *, for_update: bool = False) -> Drill:
        """One drill; `for_update` locks the row until the end of the unit of work.

        Raises:
            DrillNotFoundError: There is none.
        """
        ...

    async def asked_for(self, request_id: RequestId) -> Drill | None:
        """The one that a RunDrill with this request id made, or None."""
        ...

    async def save(self, drill: Drill) -> None:
        """Write a changed one over the row of version `drill.version - 1`; not whether it is cancelled.

        Raises:
            ConflictError: The row has another version.
        """
        ...

    async def cancel(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        """Write the wish that those of a client, or of one freelancer, end that are RUNNING; answers how many are."""
        ...

    async def unfinished(self) -> Sequence[Drill]:
        """Those that are RUNNING."""
        ...

    async def newest(self) -> Drill | None:
        """The one that was begun last, by whomever."""
        ...

    async def proven_since(self) -> datetime | None:
        """When the last one began that PASSED; where none did, when the first of all began; None: there is none."""
        ...

    async def list(self, client: ClientId | None, *, page_size: int, page_token: str) -> Page[Drill]:
        """One page of a client's, or of all, the newest first.

        Raises:
            InvalidRequestError: The token is not one of such a list (violation `page_token`).
        """
        ...

    async def pick(self, *, most_bytes: int) -> BackupSetId | None:
        """The set whose turn it is: the newest COMPLETE one of files of a sandbox, if it is not larger.

        Clients have their turns one after the other, the one first whose last drill is longest ago or never was, and of
        a client its sandboxes in the same way. Not those of clients that are being deleted.
        """
        ...

    async def forget(self, *, before: datetime, limit: int) -> int:
        """Delete rows that ended before; answers how many."""
        ...
