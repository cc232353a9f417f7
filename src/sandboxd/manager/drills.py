"""What callers can do with restore drills: have one now, and read what they came to."""

from __future__ import annotations

from datetime import timedelta

from sandboxd.manager.backup_ports import BackupSetNotFoundError
from sandboxd.manager.drilling import Drilling
from sandboxd.manager.ports import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, UnitsOfWork
from sandboxd.model.backup import BackupSetId
from sandboxd.model.backup_errors import BackupsOffError
from sandboxd.model.caller import Caller
from sandboxd.model.drill import Drill, DrillTrigger, NothingToDrillError
from sandboxd.model.ids import ClientId, RequestId, SandboxId
from sandboxd.model.paging import Page


class Drills:
    """The use cases of drills. Without anything to drill with they say so."""

    def __init__(self, *, units: UnitsOfWork, drilling: Drilling | None) -> None:
        self._units = units
        self._drilling = drilling

    async def run(
        self,
        request_id: RequestId,
        backup: tuple[SandboxId, BackupSetId] | None = None,
        *,
        wait: bool = True,
        timeout: timedelta,
    ) -> Drill:
        """Have a drill now, and answer when it has ended.

        Args:
            request_id: The same id is answered with the same drill.
            backup: Of which set, and whose that is; None takes the one whose turn it is.
            wait: Else the answer comes when it has begun.
            timeout: How long the caller waits.

        Raises:
            BackupsOffError: Nothing is backed up in this installation.
            BackupSetNotFoundError: There is no such set.
            BackupSetStatusError: It is not complete.
            DrillInProgressError: Another drill runs.
            NothingToDrillError: No set is named, and none has a turn.
            DeadlineError: It has not ended in time; it goes on.
        """
        if self._drilling is None:
            raise BackupsOffError(
                "This installation keeps no backups: SANDBOXD_BACKUPS_LOCATION says where they would lie.",
                setting="SANDBOXD_BACKUPS_LOCATION",
            )
        async with self._units.begin() as work:
            drill = await work.drills.asked_for(request_id)
            chosen = None
            if drill is None:
                name = backup[1] if backup else await work.drills.pick(most_bytes=self._drilling.tools.drill_bytes)
                chosen = None if name is None else await work.backup_sets.get(name)
        if drill is None:
            if chosen is None:
                raise NothingToDrillError("There is no complete backup that is small enough for a drill.")
            if backup is not None and chosen.sandbox != backup[0]:
                raise BackupSetNotFoundError(chosen.id)
            drill = await self._drilling.begin(chosen, trigger=DrillTrigger.REQUEST, request_id=request_id)
        return await self._drilling.wait(drill.id, timeout=timeout) if wait else drill

    async def list(self, caller: Caller, *, page_size: int = 0, page_token: str = "") -> Page[Drill]:
        """One page, the newest first: of the caller's client, or of all where it acts for none.

        Raises:
            InvalidRequestError: The token is not one of this list.
        """
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        async with self._units.begin() as work:
            client = ClientId(caller.client) if caller.client else None
            return await work.drills.list(client, page_size=size, page_token=page_token)
