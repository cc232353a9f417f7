"""Ends the turns of clients and freelancers who may not act any more: suspended ones, and those that are deleted.

Each replica looks at the conversations that it owns, as soon as it hears that something changed and every few seconds:
it is the state that counts, so a lost hint or a conversation that moved between replicas makes no hole.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog

from sandboxd.model.accounts import Standings
from sandboxd.model.errors import ForbiddenError, SandboxdError
from sandboxd.model.ids import TurnId
from sandboxd.stream.custody import Custody
from sandboxd.stream.owner import ConversationOwner

LOOK_EVERY: Final = timedelta(seconds=5)

log = structlog.get_logger(__name__)


class Suspensions:
    """Cancels turns. `run` must run beside the custody."""

    def __init__(self, *, custody: Custody, standings: Standings, look_every: timedelta = LOOK_EVERY) -> None:
        self._custody = custody
        self._standings = standings
        self._look_every = look_every
        self._cancelled: set[TurnId] = set()
        """Turns that were cancelled and are still open: the CLI may take a while."""

    async def run(self) -> None:
        """Enforce until cancelled."""
        while True:
            try:
                await self.enforce()
            except SandboxdError as error:
                log.warning("suspension.not_enforced", error=error.message)
            except Exception:  # a loop: one bad pass must not end all that follow
                log.exception("suspension.pass_broken")
            await self._standings.wait_for_change(None, timeout=self._look_every)

    async def enforce(self) -> int:
        """Cancel every open turn, owned here, of who may not act; answers how many were cancelled now."""
        still_open: set[TurnId] = set()
        cancelled = 0
        for owner in self._custody.owners():
            cancelled += await self._enforce(owner, still_open)
        self._cancelled &= still_open
        return cancelled

    async def _enforce(self, owner: ConversationOwner, still_open: set[TurnId]) -> int:
        book, cancelled = owner.conversation.book, 0
        for session in list(book.sessions.values()):
            turn = book.turn_of(session.id)
            if turn is None:
                continue
            still_open.add(turn.id)
            if turn.id in self._cancelled:
                continue
            try:
                await self._standings.require_active(session.client, session.freelancer)
            except ForbiddenError as error:
                reason = error.reason
            else:
                continue
            try:
                await owner.act(lambda of=session.id, why=reason: owner.conversation.cancel(of, reason=why))  # type: ignore[misc]  # of a loop
            except SandboxdError as error:
                log.warning("suspension.turn_not_cancelled", sandbox=owner.sandbox, error=error.message)
                continue
            self._cancelled.add(turn.id)
            cancelled += 1
            log.info(
                "suspension.turn_cancelled", sandbox=owner.sandbox, session=session.id, turn=turn.id, reason=reason
            )
        return cancelled
