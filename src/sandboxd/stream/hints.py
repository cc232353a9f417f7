"""Hints between replicas: an owner tells that it has committed events, where a watcher elsewhere has asked to be told.

The journal is the only source of events; a hint says "look". It may be lost: followed conversations of other replicas
are looked at now and then in any case. Watchers register with the owner for a while and again, all conversations of a
replica together; an owner that nobody elsewhere watches sends nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import SandboxId, SessionId
from sandboxd.stream.feed import EventFeed
from sandboxd.stream.ports import Journal, Wakeups

log = structlog.get_logger(__name__)

EVENTS: Final = "events"
"""Topic: `SANDBOX REPLICA`, that replica owns it and has committed."""
WATCHERS: Final = "watchers"
"""Topic: `REPLICA SANDBOX…`, that replica follows these."""
REGISTER_EVERY: Final = timedelta(seconds=5)
"""How often a replica says what it follows, and looks at it without having been told."""
REGISTRATIONS: Final = 3
"""A registration is good for so many of these spans: two may be lost."""
REGISTER_BATCH: Final = 100
"""Conversations in one hint; PostgreSQL's payloads end at 8,000 bytes."""
LOOK_BATCH: Final = 32
"""Sessions that are read in one query."""
LOOK_EVENTS: Final = 200
LOOK_BYTES: Final = 256 << 10
"""What one look takes of a session at most. The rest is taken by the next look."""
FULL_LOOK: Final = 50
"""So many events, and there may be more: it is looked at again without a hint."""
RETRY_SECONDS: Final = 0.5


@dataclass(slots=True)
class _Followed:
    """A conversation that somebody here follows."""

    sessions: Counter[SessionId] = field(default_factory=Counter)
    owner: str = ""
    """Replica that was heard of last."""


class EventHints:
    """Who is told of committed events, and who is to be asked."""

    def __init__(
        self,
        *,
        feed: EventFeed,
        journal: Journal,
        wakeups: Wakeups,
        replica: str,
        register_every: timedelta = REGISTER_EVERY,
    ) -> None:
        self._feed = feed
        self._journal = journal
        self._wakeups = wakeups
        self._replica = replica
        self._every = register_every.total_seconds()
        self._owned: set[SandboxId] = set()
        self._followed: dict[SandboxId, _Followed] = {}
        self._watched: dict[SandboxId, float] = {}
        """Conversations of ours that are followed elsewhere, until when."""
        self._to_tell: dict[SandboxId, None] = {}
        self._to_register: dict[SandboxId, None] = {}
        self._to_read: dict[SessionId, None] = {}
        self._work = asyncio.Event()
        self._unread = asyncio.Event()

    # ------------------------------------------------------------------ for owners

    def took_over(self, sandbox: SandboxId) -> None:
        """This replica owns the conversation: who follows it elsewhere looks once, and registers."""
        self._owned.add(sandbox)
        self._tell(sandbox)

    def let_go(self, sandbox: SandboxId) -> None:
        """It does not any more."""
        self._owned.discard(sandbox)
        self._watched.pop(sandbox, None)
        if sandbox in self._followed:
            self._register(sandbox)

    def published(self, sandbox: SandboxId) -> None:
        """Events of a conversation of ours were committed. Costs a look into a dictionary where nobody follows it."""
        until = self._watched.get(sandbox)
        if until is None:
            return
        if until < asyncio.get_running_loop().time():
            del self._watched[sandbox]
            return
        self._tell(sandbox)

    # ------------------------------------------------------------------ for watchers

    @contextmanager
    def following(self, sandbox: SandboxId, session: SessionId) -> Iterator[None]:
        """Be told of the session's events while this lasts."""
        followed = self._followed.setdefault(sandbox, _Followed())
        followed.sessions[session] += 1
        if sandbox not in self._owned and followed.sessions.total() == 1:
            self._register(sandbox)
        try:
            yield
        finally:
            followed.sessions -= Counter({session: 1})
            if not followed.sessions:
                self._followed.pop(sandbox, None)

    # ------------------------------------------------------------------ loops

    async def run(self) -> None:
        """Tell, register, hear and look until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send(), name="hints-send")
            tasks.create_task(self._repeat(), name="hints-register")
            tasks.create_task(self._hear_events(), name="hints-events")
            tasks.create_task(self._hear_watchers(), name="hints-watchers")
            tasks.create_task(self._read(), name="hints-read")

    async def _send(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            tell, self._to_tell = list(self._to_tell), {}
            register, self._to_register = list(self._to_register), {}
            for sandbox in tell:
                await self._wakeups.notify(EVENTS, f"{sandbox} {self._replica}")
            for start in range(0, len(register), REGISTER_BATCH):
                names = " ".join(register[start : start + REGISTER_BATCH])
                await self._wakeups.notify(WATCHERS, f"{self._replica} {names}")

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            for sandbox, followed in self._followed.items():
                if sandbox not in self._owned:
                    self._register(sandbox)
                    self._look(followed)

    async def _hear_events(self) -> None:
        async for payload in self._wakeups.listen(EVENTS):
            name, _, replica = payload.partition(" ")
            followed = self._followed.get(SandboxId(name))
            if followed is None or replica == self._replica:
                continue
            if followed.owner != replica:
                followed.owner = replica
                self._register(SandboxId(name))
            self._look(followed)

    async def _hear_watchers(self) -> None:
        async for payload in self._wakeups.listen(WATCHERS):
            replica, *names = payload.split(" ")
            if replica == self._replica:
                continue
            until = asyncio.get_running_loop().time() + REGISTRATIONS * self._every
            for sandbox in map(SandboxId, names):
                if sandbox in self._owned:
                    if sandbox not in self._watched:
                        self._tell(sandbox)  # what was committed while the registration was on its way
                    self._watched[sandbox] = until

    async def _read(self) -> None:
        while True:
            await self._unread.wait()
            batch = list(self._to_read)[:LOOK_BATCH]
            for session in batch:
                del self._to_read[session]
            if not self._to_read:
                self._unread.clear()
            try:
                await self._read_batch(batch)
            except SandboxdError as error:
                log.warning("hints.read_unanswered", sessions=len(batch), error=error.message)
                self._look_at(batch)
                await asyncio.sleep(RETRY_SECONDS)

    async def _read_batch(self, sessions: Sequence[SessionId]) -> None:
        cursors = {}
        for session in sessions:
            tip = self._feed.tip(session)
            if tip is None:
                self._feed.wake(session)  # its watchers look by themselves
            else:
                cursors[session] = tip
        if not cursors:
            return
        found = await self._journal.events_of(cursors, limit=LOOK_EVENTS, max_bytes=LOOK_BYTES)
        for session, events in found.items():
            self._feed.learn(session, events)
        # An owner that commits faster than we look, or a look that was full.
        self._look_at([session for session, events in found.items() if len(events) >= FULL_LOOK])

    def _look(self, followed: _Followed) -> None:
        self._look_at(followed.sessions)

    def _look_at(self, sessions: Sequence[SessionId] | Counter[SessionId]) -> None:
        self._to_read.update(dict.fromkeys(sessions))
        if self._to_read:
            self._unread.set()

    def _tell(self, sandbox: SandboxId) -> None:
        self._to_tell[sandbox] = None
        self._work.set()

    def _register(self, sandbox: SandboxId) -> None:
        self._to_register[sandbox] = None
        self._work.set()
