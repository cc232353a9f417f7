"""The journal and the sessions in memory, with the weather that the real ones have: down, hanging, answer lost.

`FakeJournal` and `FakeSessions` share a `FakeStore`, as the real ones share a database. Owners live until they are
named in `dead`, or their lease has run out by `clock`. The suites tests/contract/test_journal.py and test_sessions.py
hold the real ones and these to the same promises.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sandboxd.model.errors import (
    ConflictError,
    DatabaseUnavailableError,
    FieldViolation,
    InvalidRequestError,
    RequestIdReusedError,
    SessionNotFoundError,
)
from sandboxd.model.events import SessionEvent
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId, SessionId, TurnId
from sandboxd.model.paging import Page
from sandboxd.model.session import PromptInput, Session, Turn, TurnState
from sandboxd.stream.ports import Appended, Command, Conversation, Entry, SessionOrder, StdinRecord

OVER = {TurnState.COMPLETED, TurnState.FAILED}


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(kw_only=True)
class FakeStore:
    conversations: dict[SandboxId, Conversation] = field(default_factory=dict)
    leases: dict[SandboxId, datetime] = field(default_factory=dict)
    stdin: dict[SandboxId, list[StdinRecord]] = field(default_factory=dict)
    """Of the conversation's present process."""
    commands: dict[tuple[ClientId, RequestId], Command] = field(default_factory=dict)
    sessions: dict[SessionId, Session] = field(default_factory=dict)
    turns: dict[TurnId, Turn] = field(default_factory=dict)
    log: dict[SessionId, list[SessionEvent]] = field(default_factory=dict)
    titles_settled: set[SessionId] = field(default_factory=set)
    """Sessions whose title a policy has changed: their owners must not write the old one back."""

    down: bool = False
    answers_lost: int = 0
    """So many appends commit, and then fail as if the answer had been lost."""
    collisions: int = 0
    """So many renewals of leases are undone, because they collide with other transactions."""
    hanging: asyncio.Event | None = None
    """While set, every call waits for it."""

    async def weather(self) -> None:
        if self.hanging is not None:
            await self.hanging.wait()
        if self.down:
            raise DatabaseUnavailableError("The journal does not answer. Try again.")

    def living(self, session: SessionId) -> Session:
        found = self.sessions.get(session)
        if found is None or found.delete_time is not None:
            raise SessionNotFoundError(session)
        return found


@dataclass(kw_only=True)
class FakeJournal:
    store: FakeStore = field(default_factory=FakeStore)
    clock: Callable[[], datetime] = _now
    dead: set[str] = field(default_factory=set)
    """Replicas whose advisory lock is free."""
    appends: int = 0
    """Transactions so far."""

    async def append(self, entries: Sequence[Entry]) -> Sequence[Appended]:
        await self.store.weather()
        self.appends += 1
        outcomes = [self._append(entry) for entry in entries]
        if self.store.answers_lost > 0:
            self.store.answers_lost -= 1
            raise DatabaseUnavailableError("The journal's answer was lost. Append the same again.")
        return outcomes

    def _append(self, entry: Entry) -> Appended:
        store, after = self.store, entry.conversation
        before = store.conversations.get(after.sandbox)
        if before is None or before.epoch != after.epoch:
            return Appended.STALE
        if entry.events and self._taken(entry.events[0]):
            same = (before.consumed, before.written) == (after.consumed, after.written)
            return Appended.DURABLE if same else Appended.STALE
        if not self._continues(entry):
            return Appended.STALE
        if (before.incarnation, before.process) != (after.incarnation, after.process):
            store.stdin.pop(after.sandbox, None)
        snapshot = json.loads(json.dumps(after.snapshot))
        store.conversations[after.sandbox] = replace(after, owner=before.owner, snapshot=snapshot)
        if entry.stdin is not None:
            records = store.stdin.setdefault(after.sandbox, [])
            if all(record.offset != entry.stdin.offset for record in records):
                records.append(entry.stdin)
        for command in entry.commands:
            store.commands.setdefault((command.client, command.request_id), command)
        self._put_sessions(entry)
        return Appended.DURABLE

    def _put_sessions(self, entry: Entry) -> None:
        store = self.store
        for session in entry.sessions:
            known = store.sessions.get(session.id)
            deleted = known.delete_time if known else session.delete_time
            title = known.title if known and session.id in store.titles_settled else session.title
            store.sessions[session.id] = replace(session, delete_time=deleted, title=title)
        for turn in entry.turns:
            if store.sessions[turn.session].delete_time is None:
                self._put_turn(turn)
        for event in entry.events:
            session = store.sessions[event.session]
            store.sessions[event.session] = replace(session, head_sequence=max(session.head_sequence, event.sequence))
            if session.delete_time is None:
                store.log.setdefault(event.session, []).append(event)

    def _taken(self, event: SessionEvent) -> bool:
        session = self.store.sessions.get(event.session)
        return session is not None and event.sequence <= session.head_sequence

    def _continues(self, entry: Entry) -> bool:
        heads = {session.id: 0 for session in entry.sessions}
        heads |= {name: session.head_sequence for name, session in self.store.sessions.items()}
        for event in entry.events:
            if heads.get(event.session, -1) + 1 != event.sequence:
                return False
            heads[event.session] = event.sequence
        return True

    def _put_turn(self, turn: Turn) -> None:
        known = self.store.turns.get(turn.id)
        prompt = known.prompt if known else turn.prompt
        if turn.state in OVER:
            prompt = PromptInput(text=prompt.text)
        self.store.turns[turn.id] = replace(turn, prompt=prompt)

    async def acquire(
        self, sandbox: SandboxId, *, owner: str, lease: timedelta, force: bool = False
    ) -> Conversation | None:
        await self.store.weather()
        known = self.store.conversations.get(sandbox)
        if known is not None and not force and known.owner != owner and self._owned(known):
            return None
        mine = (
            Conversation(sandbox=sandbox, epoch=1, owner=owner)
            if known is None
            else replace(known, epoch=known.epoch + 1, owner=owner)
        )
        self.store.conversations[sandbox] = mine
        self.store.leases[sandbox] = self.clock() + lease
        return mine

    def _owned(self, conversation: Conversation) -> bool:
        lease = self.store.leases.get(conversation.sandbox)
        alive = conversation.owner != "" and conversation.owner not in self.dead
        return alive and lease is not None and lease > self.clock()

    async def renew(self, sandboxes: Sequence[SandboxId], *, owner: str, lease: timedelta) -> Sequence[SandboxId]:
        await self.store.weather()
        if self.store.collisions:
            self.store.collisions -= 1
            raise ConflictError("The transaction collided with another one. Try again.")
        known = self.store.conversations
        ours = [name for name in sandboxes if name in known and known[name].owner == owner]
        for name in ours:
            self.store.leases[name] = self.clock() + lease
        return ours

    async def release(self, sandbox: SandboxId, *, owner: str, epoch: int) -> None:
        await self.store.weather()
        known = self.store.conversations.get(sandbox)
        if known is not None and (known.owner, known.epoch) == (owner, epoch):
            self.store.conversations[sandbox] = replace(known, owner="")
            self.store.leases.pop(sandbox, None)

    async def unattended(self, *, limit: int) -> Sequence[SandboxId]:
        await self.store.weather()
        busy = {
            self.store.sessions[turn.session].sandbox for turn in self.store.turns.values() if turn.state not in OVER
        }
        found = [
            conversation.sandbox
            for conversation in self.store.conversations.values()
            if (conversation.process or conversation.sandbox in busy) and not self._owned(conversation)
        ]
        return sorted(found)[:limit]

    async def pending_stdin(
        self, sandbox: SandboxId, *, incarnation: IncarnationId, process: str
    ) -> Sequence[StdinRecord]:
        await self.store.weather()
        known = self.store.conversations.get(sandbox)
        if known is None or (known.incarnation, known.process) != (incarnation, process):
            return []
        return sorted(self.store.stdin.get(sandbox, []), key=lambda record: record.offset)

    async def forget_stdin(self, sandbox: SandboxId, *, before: int) -> None:
        await self.store.weather()
        records = self.store.stdin.get(sandbox, [])
        self.store.stdin[sandbox] = [record for record in records if record.offset + len(record.data) > before]

    async def find_command(self, client: ClientId, request_id: RequestId) -> Command | None:
        await self.store.weather()
        return self.store.commands.get((client, request_id))

    async def events(
        self, session: SessionId, *, after: int, limit: int, max_bytes: int = 2 << 20
    ) -> Sequence[SessionEvent]:
        await self.store.weather()
        found: list[SessionEvent] = []
        size = 0
        for event in self.store.log.get(session, [])[:]:
            if event.sequence <= after:
                continue
            if len(found) >= limit or (found and size >= max_bytes):
                break
            found.append(event)
            size += len(repr(event.body))
        return found

    async def events_of(
        self, cursors: Mapping[SessionId, int], *, limit: int, max_bytes: int
    ) -> Mapping[SessionId, Sequence[SessionEvent]]:
        found = {
            session: await self.events(session, after=after, limit=limit, max_bytes=max_bytes)
            for session, after in cursors.items()
        }
        return {session: events for session, events in found.items() if events}

    async def head(self, session: SessionId) -> int:
        await self.store.weather()
        return self.store.living(session).head_sequence


@dataclass(kw_only=True)
class FakeSessions:
    store: FakeStore = field(default_factory=FakeStore)

    async def create(self, session: Session, *, opened: SessionEvent, command: Command) -> tuple[Session, bool]:
        await self.store.weather()
        known = self.store.commands.get((command.client, command.request_id))
        if known is not None:
            if known.body_hash != command.body_hash:
                raise RequestIdReusedError(command.request_id)
            return self.store.living(known.session), False
        made = replace(session, head_sequence=opened.sequence)
        self.store.commands[command.client, command.request_id] = command
        self.store.sessions[session.id] = made
        self.store.log[session.id] = [opened]
        return made, True

    async def get(self, session: SessionId, *, client: ClientId, freelancer: FreelancerId | None) -> Session:
        await self.store.weather()
        found = self.store.living(session)
        if found.client != client or freelancer not in {None, found.freelancer}:
            raise SessionNotFoundError(session)
        return found

    async def of_sandbox(self, sandbox: SandboxId) -> Sequence[Session]:
        await self.store.weather()
        found = [one for one in self.store.sessions.values() if one.sandbox == sandbox and one.delete_time is None]
        return sorted(found, key=lambda one: (one.create_time, one.id), reverse=True)[:1000]

    async def open_turns(self, sandbox: SandboxId) -> Sequence[Turn]:
        await self.store.weather()
        found = [
            turn
            for turn in self.store.turns.values()
            if turn.state not in OVER and self.store.sessions[turn.session].sandbox == sandbox
        ]
        return sorted(found, key=lambda turn: (turn.start_time, turn.id))

    async def list(
        self,
        sandbox: SandboxId,
        *,
        client: ClientId,
        freelancer: FreelancerId | None,
        order: SessionOrder,
        title_contains: str,
        page_size: int,
        page_token: str,
    ) -> Page[Session]:
        await self.store.weather()
        by, _, direction = order.value.partition(" ")

        def key(session: Session) -> str:
            moment: datetime = getattr(session, by)
            return f"{moment.timestamp():020.6f} {session.id}"

        found = [
            one
            for one in self.store.sessions.values()
            if one.sandbox == sandbox
            and one.client == client
            and freelancer in {None, one.freelancer}
            and one.delete_time is None
            and title_contains.lower() in one.title.lower()
        ]
        found.sort(key=key, reverse=bool(direction))
        this = f"{sandbox} {client} {freelancer} {order.value} {title_contains}\n"
        if page_token:
            if not page_token.startswith(this):
                violation = FieldViolation(field="page_token", description="must be the token of a page of this list")
                raise InvalidRequestError("The page token is not one of this list.", violations=[violation])
            last = page_token.removeprefix(this)
            found = [one for one in found if (key(one) < last if direction else key(one) > last)]
        more = len(found) > page_size
        return Page(items=found[:page_size], next_token=this + key(found[page_size - 1]) if more else "")

    async def delete(self, session: SessionId, *, at: datetime) -> None:
        await self.store.weather()
        known = self.store.sessions.get(session)
        if known is None or known.delete_time is not None:
            return
        self.store.sessions[session] = replace(known, delete_time=at, open_turn=None)
        self.store.log.pop(session, None)
        for turn in [turn for turn in self.store.turns.values() if turn.session == session]:
            del self.store.turns[turn.id]
