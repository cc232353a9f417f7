"""Custody: which conversations this replica owns, how it becomes owner, keeps its leases and lets go.

At most one owner object per sandbox. A conversation that nobody owns and that has work left (a process, an open turn)
is taken up by the first replica that notices: after a crash the service's next life finds its own this way.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import timedelta
from typing import Final, Literal, overload

import structlog

from sandboxd.model.errors import DatabaseUnavailableError, SandboxdError, UnavailableError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId
from sandboxd.stream.book import ConversationBook
from sandboxd.stream.conversation import LiveConversation
from sandboxd.stream.owner import ConversationOwner, Services

log = structlog.get_logger(__name__)

LEASE: Final = timedelta(seconds=15)
"""After this time without a renewal a frozen owner may be replaced. A dead one is noticed at once by its lock."""
RENEW_SECONDS: Final = 5.0
ADOPT_SECONDS: Final = 2.0
ADOPT_BATCH: Final = 50
BACK_OFF_SECONDS: Final = 1.0


class Custody:
    """The conversations of this replica."""

    def __init__(self, services: Services, *, replica: str) -> None:
        self._services = services
        self._replica = replica
        self._owners: dict[SandboxId, tuple[ConversationOwner, asyncio.Task[None]]] = {}
        self._locks: defaultdict[SandboxId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: asyncio.TaskGroup | None = None
        self._draining = False

    @property
    def owned(self) -> int:
        """How many conversations this replica owns."""
        return len(self._owners)

    @overload
    async def owner(self, sandbox: SandboxId, *, only_if_used: Literal[True]) -> ConversationOwner | None: ...
    @overload
    async def owner(self, sandbox: SandboxId) -> ConversationOwner: ...
    async def owner(self, sandbox: SandboxId, *, only_if_used: bool = False) -> ConversationOwner | None:
        """The owner of a sandbox's conversation, in this replica; becomes it where nobody is.

        Args:
            sandbox: Whose conversation.
            only_if_used: Answer None where there is neither a process nor an open turn.

        Raises:
            UnavailableError: Another replica owns it, or this one is draining.
        """
        async with self._locks[sandbox]:
            held = self._owners.get(sandbox)
            if held is not None and not held[0].ended:
                return held[0]
            if self._draining or self._tasks is None:
                raise UnavailableError(
                    "This server is stopping. Send the same request again.", retry_after=timedelta(seconds=1)
                )
            row = await self._services.journal.acquire(sandbox, owner=self._replica, lease=LEASE)
            if row is None:
                raise UnavailableError(
                    "Another server owns this conversation. Send the same request again.",
                    retry_after=timedelta(seconds=1),
                    sandbox=sandbox,
                )
            failpoint("conversation.after_acquire")
            turns = await self._services.sessions.open_turns(sandbox)
            if only_if_used and not row.process and not turns:
                await self._services.journal.release(sandbox, owner=self._replica, epoch=row.epoch)
                return None
            sessions = await self._services.sessions.of_sandbox(sandbox)
            book = ConversationBook(
                row, sessions=sessions, turns=turns, clock=self._services.clock, ids=self._services.ids
            )
            owner = ConversationOwner(LiveConversation(book, self._services.launcher), self._services)
            task = self._tasks.create_task(self._keep(owner), name=f"conversation-{sandbox}")
            self._owners[sandbox] = (owner, task)
            return owner

    async def give_up(self, sandbox: SandboxId) -> None:
        """Stop owning a conversation, so that the next owner need not wait."""
        held = self._owners.pop(sandbox, None)
        if held is None:
            return
        owner, task = held
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            await self._services.journal.release(sandbox, owner=self._replica, epoch=owner.conversation.book.row.epoch)
        except DatabaseUnavailableError as error:
            log.info("conversation.release_unanswered", sandbox=sandbox, error=str(error))

    async def run(self) -> None:
        """Keep leases and adopt what nobody owns, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._renew(), name="custody-renew")
            tasks.create_task(self._adopt(), name="custody-adopt")

    async def drain(self) -> None:
        """Hand everything over: nothing new, every conversation released. Turns go on in their sandboxes."""
        self._draining = True
        await asyncio.gather(*(self.give_up(sandbox) for sandbox in list(self._owners)))

    async def _keep(self, owner: ConversationOwner) -> None:
        try:
            await owner.run()
        except* Exception:  # a task guard: one broken conversation must not end the others
            log.exception("conversation.broken", sandbox=owner.sandbox)
            await asyncio.sleep(BACK_OFF_SECONDS)
        finally:
            held = self._owners.get(owner.sandbox)
            if held is not None and held[0] is owner:
                del self._owners[owner.sandbox]

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            mine = list(self._owners)
            if not mine:
                continue
            try:
                still = set(await self._services.journal.renew(mine, owner=self._replica, lease=LEASE))
            except DatabaseUnavailableError as error:
                log.warning("custody.renew_unanswered", conversations=len(mine), error=str(error))
                continue
            for sandbox in mine:
                held = self._owners.get(sandbox)
                if sandbox not in still and held is not None:
                    log.warning("conversation.lease_lost", sandbox=sandbox)
                    held[1].cancel()

    async def _adopt(self) -> None:
        while True:
            try:
                for sandbox in await self._services.journal.unattended(limit=ADOPT_BATCH):
                    if sandbox not in self._owners and not self._draining:
                        await self._adopt_one(sandbox)
            except DatabaseUnavailableError as error:
                log.warning("custody.adopt_unanswered", error=str(error))
            await asyncio.sleep(ADOPT_SECONDS)

    async def _adopt_one(self, sandbox: SandboxId) -> None:
        try:
            owner = await self.owner(sandbox, only_if_used=True)
            if owner is not None:
                log.info("conversation.adopted", sandbox=sandbox, epoch=owner.conversation.book.row.epoch)
        except SandboxdError as error:
            log.info("conversation.not_adopted", sandbox=sandbox, error=str(error))
