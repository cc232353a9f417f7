"""Custody: which conversations this replica owns, how it becomes owner, keeps its leases and lets go.

At most one owner object per sandbox. A conversation that nobody owns and that has work left (a process, an open turn)
is taken up by the first replica that notices: after a crash the service's next life finds its own this way.
"""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Final, Literal, overload
from weakref import WeakValueDictionary

import structlog

from sandboxd.model.errors import SandboxdError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId
from sandboxd.stream.book import ConversationBook
from sandboxd.stream.conversation import LiveConversation
from sandboxd.stream.moves import OwnedElsewhereError, StoppingError
from sandboxd.stream.owner import ConversationOwner, Services
from sandboxd.stream.ports import Wakeups

log = structlog.get_logger(__name__)

LEASE: Final = timedelta(seconds=15)
"""After this time without a renewal a frozen owner may be replaced. A dead one is noticed at once by its lock."""
RENEWALS: Final = 3
"""Renewals in the time of one lease."""
ADOPT_SECONDS: Final = 2.0
ADOPT_BATCH: Final = 50
ADOPT_AT_ONCE: Final = 8
ADOPT_SPREAD_SECONDS: Final = 0.05
ORPHANS: Final = "conversations"
"""Topic of hints: a conversation with work left was let go."""
BACK_OFF_SECONDS: Final = 1.0


class Custody:
    """The conversations of this replica."""

    def __init__(
        self, services: Services, *, replica: str, lease: timedelta = LEASE, wakeups: Wakeups | None = None
    ) -> None:
        """Own nothing yet.

        Args:
            services: What owners share.
            replica: Id of this process's life.
            lease: How long a conversation stays ours without a sign of life.
            wakeups: Tells other replicas what was let go, and hears of what they let go. None: they look by themselves.
        """
        self._services = services
        self._replica = replica
        self._lease = lease
        self._wakeups = wakeups
        self._orphaned = asyncio.Event()
        self._owners: dict[SandboxId, tuple[ConversationOwner, asyncio.Task[None]]] = {}
        # Gone with its last holder: there is one for each sandbox that somebody opens now, not for all that ever were.
        self._locks: WeakValueDictionary[SandboxId, asyncio.Lock] = WeakValueDictionary()
        self._tasks: asyncio.TaskGroup | None = None
        self._draining = False
        self._adopting = True

    @property
    def owned(self) -> int:
        """How many conversations this replica owns."""
        return len(self._owners)

    def owners(self) -> list[ConversationOwner]:
        """The owners that live now."""
        return [owner for owner, _ in self._owners.values() if not owner.ended]

    @property
    def draining(self) -> bool:
        """True when nothing new is taken on."""
        return self._draining or self._tasks is None

    def held(self, sandbox: SandboxId) -> ConversationOwner | None:
        """The owner of a sandbox's conversation where that is in this replica now."""
        held = self._owners.get(sandbox)
        return None if held is None or held[0].ended else held[0]

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
            OwnedElsewhereError: Another replica owns it.
            StoppingError: This one is draining.
        """
        async with self._locks.setdefault(sandbox, asyncio.Lock()):
            held = self._owners.get(sandbox)
            if held is not None and not held[0].ended:
                return held[0]
            if self._draining or self._tasks is None:
                raise StoppingError
            row = await self._services.journal.acquire(sandbox, owner=self._replica, lease=self._lease)
            if row is None:
                raise OwnedElsewhereError(sandbox)
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
            with self._services.tracer.below(None):  # it outlives the call that happened to come first
                task = self._tasks.create_task(self._keep(owner), name=f"conversation-{sandbox}")
            self._owners[sandbox] = (owner, task)
            self._services.metrics.taken(adopted=only_if_used)
            return owner

    @property
    def open_turns(self) -> int:
        """How many turns are open in the conversations of this replica."""
        return sum(len(owner.conversation.book.open_turns) for owner, _ in self._owners.values())

    async def give_up(self, sandbox: SandboxId) -> None:
        """Stop owning a conversation, so that the next owner need not wait."""
        held = self._owners.pop(sandbox, None)
        if held is None:
            return
        owner, task = held
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        book = owner.conversation.book
        try:
            await self._services.journal.release(sandbox, owner=self._replica, epoch=book.row.epoch)
        except SandboxdError as error:
            log.info("conversation.release_unanswered", sandbox=sandbox, error=str(error))
            return
        if self._wakeups is not None and (book.row.process or book.open_turns):
            await self._wakeups.notify(ORPHANS, sandbox)

    async def run(self) -> None:
        """Keep leases and adopt what nobody owns, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._renew(), name="custody-renew")
            tasks.create_task(self._adopt(), name="custody-adopt")
            if self._wakeups is not None:
                tasks.create_task(self._hear(self._wakeups), name="custody-orphans")

    def adopt_no_more(self) -> None:
        """Leave what nobody owns to other replicas: this one is about to stop."""
        self._adopting = False

    async def drain(self) -> None:
        """Hand everything over: nothing new, every conversation released. Turns go on in their sandboxes."""
        self._draining = True
        await asyncio.gather(*(self.give_up(sandbox) for sandbox in list(self._owners)))

    def undrain(self) -> None:
        """Take on conversations again."""
        self._draining = False
        self._orphaned.set()

    async def _keep(self, owner: ConversationOwner) -> None:
        self._services.hints.took_over(owner.sandbox)
        try:
            await owner.run()
        except* Exception:  # a task guard: one broken conversation must not end the others
            log.exception("conversation.broken", sandbox=owner.sandbox)
            await asyncio.sleep(BACK_OFF_SECONDS)
        finally:
            held = self._owners.get(owner.sandbox)
            if held is not None and held[0] is owner:
                del self._owners[owner.sandbox]
            if self.held(owner.sandbox) is None:
                self._services.hints.let_go(owner.sandbox)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease.total_seconds() / RENEWALS)
            mine = list(self._owners)
            if not mine:
                continue
            try:
                still = set(await self._services.journal.renew(mine, owner=self._replica, lease=self._lease))
            except SandboxdError as error:  # a loop: one bad round must not end the replica
                log.warning("custody.renew_unanswered", conversations=len(mine), error=str(error))
                continue
            for sandbox in mine:
                held = self._owners.get(sandbox)
                if sandbox not in still and held is not None:
                    log.warning("conversation.lease_lost", sandbox=sandbox)
                    held[1].cancel()

    async def _hear(self, wakeups: Wakeups) -> None:
        """Look at once when another replica has let go of a conversation that goes on."""
        async for _ in wakeups.listen(ORPHANS):
            self._orphaned.set()

    async def _adopt(self) -> None:
        while True:
            self._orphaned.clear()
            found = 0
            try:
                orphans = await self._services.journal.unattended(limit=ADOPT_BATCH)
                found = len(orphans)
                gate = asyncio.Semaphore(ADOPT_AT_ONCE)
                await asyncio.gather(*(self._adopt_one(sandbox, gate) for sandbox in orphans))
            except SandboxdError as error:
                log.warning("custody.adopt_unanswered", error=str(error))
            if found < ADOPT_BATCH:
                await self._until_orphans()

    async def _until_orphans(self) -> None:
        try:
            async with asyncio.timeout(ADOPT_SECONDS):
                await self._orphaned.wait()
            # Several replicas have heard it: whoever comes first takes a part, and the others find less.
            await asyncio.sleep(random.uniform(0, ADOPT_SPREAD_SECONDS))  # noqa: S311  no secret
        except TimeoutError:
            pass

    async def _adopt_one(self, sandbox: SandboxId, gate: asyncio.Semaphore) -> None:
        async with gate:
            if sandbox in self._owners or self._draining or not self._adopting:
                return
            try:
                owner = await self.owner(sandbox, only_if_used=True)
                if owner is not None:
                    log.info("conversation.adopted", sandbox=sandbox, epoch=owner.conversation.book.row.epoch)
            except SandboxdError as error:
                log.info("conversation.not_adopted", sandbox=sandbox, error=str(error))
