"""What the suites of journal and sessions need to be told about the world around them, and that world in memory.

The PostgreSQL leg gives another `JournalWorld` through the fixture `postgres_journal_world`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Protocol

from sandboxd.model.client import ClientPolicy
from sandboxd.model.events import EventBody, SessionEvent
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SandboxId, SessionId, TurnId, make_id
from sandboxd.model.session import PromptInput, Session, Turn, TurnState
from sandboxd.stream.ports import Journal, KeptTexts, Sessions
from tests.fakes.journal import FakeJournal, FakeSessions, FakeStore
from tests.fakes.texts import FakeKeptTexts

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
CLIENT, FREELANCER = ClientId("acme"), FreelancerId("ada")
_numbers = count(1)


class JournalWorld(Protocol):
    """A journal and its sessions, and what others do around them."""

    journal: Journal
    sessions: Sessions
    texts: KeptTexts

    async def given_policy(self, policy: ClientPolicy) -> None:
        """The policy of CLIENT."""

    async def given_sandbox(self, sandbox: SandboxId) -> None:
        """A sandbox of CLIENT and FREELANCER."""

    async def given_replica(self, replica: str) -> None:
        """That replica lives from now on."""

    async def kill_replica(self, replica: str) -> None: ...

    async def lose_next_answer(self) -> None:
        """The next append commits, and its answer does not arrive."""


@dataclass(kw_only=True)
class FakeJournalWorld:
    journal: Journal = field(init=False)
    sessions: Sessions = field(init=False)
    texts: KeptTexts = field(init=False)
    store: FakeStore = field(default_factory=FakeStore)

    def __post_init__(self) -> None:
        self._journal = FakeJournal(store=self.store)
        self.journal, self.sessions = self._journal, FakeSessions(store=self.store)
        self._texts = FakeKeptTexts(store=self.store)
        self.texts = self._texts

    async def given_policy(self, policy: ClientPolicy) -> None:
        self._texts.policies[CLIENT] = policy

    async def given_sandbox(self, sandbox: SandboxId) -> None:
        pass

    async def given_replica(self, replica: str) -> None:
        self._journal.dead.discard(replica)

    async def kill_replica(self, replica: str) -> None:
        self._journal.dead.add(replica)

    async def lose_next_answer(self) -> None:
        self.store.answers_lost = 1


def an_id(prefix: str) -> str:
    return make_id(prefix, at=NOON, entropy=next(_numbers).to_bytes(10, "big"))


def a_sandbox_id() -> SandboxId:
    return SandboxId(an_id("sbx"))


def a_session(sandbox: SandboxId, *, title: str = "", at: datetime = NOON) -> Session:
    return Session(
        id=SessionId(an_id("ses")),
        sandbox=sandbox,
        client=CLIENT,
        freelancer=FREELANCER,
        title=title,
        create_time=at,
        update_time=at,
    )


_PROMPT = PromptInput(text="do it")


def a_turn(session: SessionId, *, number: int = 1, prompt: PromptInput = _PROMPT) -> Turn:
    return Turn(
        id=TurnId(an_id("trn")),
        session=session,
        number=number,
        request_id=RequestId(an_id("req")),
        state=TurnState.QUEUED,
        prompt=PromptInput(text=prompt.text, attachments=tuple(prompt.attachments)),
        start_time=NOON,
        traceparent="00-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
    )


def an_event(session: SessionId, sequence: int, body: EventBody, *, turn: TurnId | None = None) -> SessionEvent:
    return SessionEvent(session=session, sequence=sequence, turn=turn, event_time=NOON, body=body)
