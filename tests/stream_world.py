"""A stream room with fakes around it: `StreamWorld` is what outlives a service, `Replica` is one life of a service."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, cast

from prometheus_client import CollectorRegistry
from typing_extensions import override

from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import SandboxNotFoundError, SandboxPausedError, UnavailableError
from sandboxd.model.events import EventBody, SessionEvent, TurnCompleted
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId, SessionId, TurnId, make_id
from sandboxd.model.sandbox import AgentEndpoint, Incarnation, Sandbox, SandboxState
from sandboxd.model.session import PromptInput
from sandboxd.model.trace import NO_TRACES, Tracer
from sandboxd.persistence.engine import Database
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.sessions import PostgresSessions
from sandboxd.stream.billing import TurnBills
from sandboxd.stream.custody import LEASE, Custody
from sandboxd.stream.desk import ErrandDesk
from sandboxd.stream.errands import Errand
from sandboxd.stream.feed import EventFeed
from sandboxd.stream.group_commit import GroupCommit
from sandboxd.stream.hints import EventHints
from sandboxd.stream.hub import SessionHandle, StreamHub
from sandboxd.stream.launch import CliLauncher
from sandboxd.stream.metrics import StreamMetrics
from sandboxd.stream.moves import MovedError, OwnedElsewhereError, PeerUnavailableError
from sandboxd.stream.opening import Accepted, Opening
from sandboxd.stream.owner import Services
from sandboxd.stream.ports import (
    ActiveSandbox,
    CliPlace,
    Holder,
    Journal,
    Peers,
    Replicas,
    Sessions,
    TurnUsage,
)
from sandboxd.stream.routing import ErrandRouter
from sandboxd.stream.sessions import SessionDirectory
from tests.fakes.agent import FakeAgent, FakeAgentConnector, FakeIo
from tests.fakes.cli import FakeCli
from tests.fakes.journal import FakeJournal, FakeSessions, FakeStore
from tests.fakes.manager import FakeWakeups

SANDBOX = SandboxId("sbx-00000000000000000000000001")
ADA = Caller(client=ClientId("acme"), subject="ada", role=Role.FREELANCER)


class WallClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return monotonic()


class RandomIds:
    def new(self, prefix: str) -> str:
        return make_id(prefix, at=datetime.now(UTC), entropy=os.urandom(10))


@dataclass(kw_only=True)
class FakeSandboxes:
    """One sandbox with its agent; a test pauses it or kills its life."""

    agent: FakeAgent
    sandbox: Sandbox
    lives: int = 1
    touched: int = 0
    ending: bool = False
    """The present life is about to end, and only who asks for it learns that."""
    connector: FakeAgentConnector = field(default_factory=FakeAgentConnector)

    def __post_init__(self) -> None:
        self.connector.agents["127.0.0.1:1"] = self.agent

    @property
    def incarnation(self) -> Incarnation:
        endpoint = AgentEndpoint(host="127.0.0.1", port=self.lives, server_name="agent")
        name = IncarnationId(f"inc-{self.lives:026d}")
        return Incarnation(
            id=name, sandbox=SANDBOX, number=self.lives, endpoint=endpoint, start_time=self.sandbox.create_time
        )

    def new_life(self) -> None:
        """The agent is gone, and another one takes its place."""
        self.agent.die()
        self.lives += 1
        programs, self.agent = self.agent.programs, FakeAgent()
        self.agent.programs = programs
        self.connector.agents[f"127.0.0.1:{self.lives}"] = self.agent

    async def get(self, sandbox: SandboxId) -> Sandbox:
        if sandbox != SANDBOX:
            raise SandboxNotFoundError(sandbox)
        return self.sandbox

    async def use(self, sandbox: SandboxId, *, timeout: timedelta) -> ActiveSandbox:
        if self.sandbox.state is SandboxState.PAUSED:
            raise SandboxPausedError(sandbox)
        self.sandbox = replace(self.sandbox, state=SandboxState.ACTIVE)
        return ActiveSandbox(sandbox=self.sandbox, incarnation=self.incarnation)

    async def present(self, sandbox: SandboxId) -> ActiveSandbox | None:
        if self.sandbox.state is SandboxState.PAUSED:
            return None
        return ActiveSandbox(sandbox=self.sandbox, incarnation=self.incarnation)

    async def incarnation_lost(self, sandbox: SandboxId, incarnation: IncarnationId) -> bool:
        if self.ending:
            self.ending = False
            self.new_life()
        return incarnation != self.incarnation.id

    async def touch(self, sandbox: SandboxId) -> None:
        self.touched += 1

    async def place(self, active: ActiveSandbox) -> CliPlace:
        if self.ending:
            raise UnavailableError("The sandbox is not running.")
        return CliPlace(
            node="node",
            entry="gemini.js",
            home="/home/gemini",
            workspace="/workspace",
            settings="/run/settings.json",
            model_endpoint="http://127.0.0.1:1",
            path="/usr/bin:/bin",
        )


class FakeTurnLedger:
    """A ledger without calls; `open_calls` keeps turns waiting."""

    open_calls = 0

    async def turn_usage(self, turn: TurnId) -> TurnUsage:
        return TurnUsage(calls=(), open_calls=self.open_calls)


@dataclass(kw_only=True)
class StreamWorld:
    """What outlives a service: the journal's truth, the agent and the CLI in it."""

    store: FakeStore = field(default_factory=FakeStore)
    clis: list[FakeCli] = field(default_factory=list)
    ledger: FakeTurnLedger = field(default_factory=FakeTurnLedger)
    dead: set[str] = field(default_factory=set)
    replicas: int = 0
    tracer: Tracer = NO_TRACES
    metrics: CollectorRegistry = field(default_factory=CollectorRegistry)
    """Of the newest replica."""
    acp_broken: bool = False
    """The CLI ends as soon as it is started in ACP mode."""
    database: Database | None = None
    """A real journal instead of the one in memory; for one replica, because nobody holds its lock."""
    lease: timedelta = LEASE
    wakeups: FakeWakeups = field(default_factory=FakeWakeups)
    living: dict[str, Replica] = field(default_factory=dict)
    cold: set[str] = field(default_factory=set)
    """Replicas that stand still."""
    frozen: set[str] = field(default_factory=set)
    """Replicas that take errands and never answer."""
    deaf: set[str] = field(default_factory=set)
    """Replicas that do an errand and whose answer is lost."""
    errands: list[tuple[str, Errand]] = field(default_factory=list)
    """What was asked of other replicas."""
    runs: list[str] = field(default_factory=list)
    """What headless runs were given on stdin."""

    def __post_init__(self) -> None:
        agent = FakeAgent()
        agent.programs = {"node": self._gemini, "/bin/sh": _shell}
        now = datetime.now(UTC)
        sandbox = Sandbox(
            id=SANDBOX,
            client=ClientId("acme"),
            freelancer=FreelancerId("ada"),
            state=SandboxState.ACTIVE,
            create_time=now,
            update_time=now,
            last_use_time=now,
        )
        self.sandboxes = FakeSandboxes(agent=agent, sandbox=sandbox)

    @property
    def prompts(self) -> list[str]:
        """Every prompt that any CLI was given."""
        return [text for cli in self.clis for text in cli.prompts]

    async def _gemini(self, io: FakeIo) -> int:
        if io.spec.argv[1] == "-e":
            return 0  # a script of ours, not the CLI
        if "--acp" in io.spec.argv:
            return 1 if self.acp_broken else await self._run_acp(io)
        return await self._headless(io)

    async def _headless(self, io: FakeIo) -> int:
        """One run: the prompt on stdin, stream-json on stdout."""
        prompt = b""
        while data := await io.read():
            prompt += data
        self.runs.append(prompt.decode())
        stamp = {"timestamp": "2026-01-01T00:00:00.000Z"}
        lines: list[dict[str, object]] = [
            {"type": "init", "session_id": "11111111-2222-4333-8444-555555555555", "model": "auto"},
            {"type": "message", "role": "user", "content": prompt.decode()},
            {"type": "message", "role": "assistant", "content": "hello ", "delta": True},
            {"type": "result", "status": "success", "stats": {}},
        ]
        for line in lines:
            await io.write(json.dumps(line | stamp).encode() + b"\n")
        return 0

    async def _run_acp(self, io: FakeIo) -> int:
        cli = FakeCli()
        self.clis.append(cli)
        read = written = 0
        while not cli.exited:
            data = await io.read()
            if not data:
                return 0
            read = cli.write(read, data)
            fresh, written = cli.stdout[written:], len(cli.stdout)
            await io.write(fresh)
        return 1

    def make_replica(self) -> Replica:
        """One life of a service, which a test ends by itself."""
        self.replicas += 1
        return Replica(self, name=f"replica-{self.replicas}")

    def freeze(self, replica: Replica) -> None:
        """Let a replica stand still: nothing that it does reaches the journal, and its lease is not renewed."""
        self.cold.add(replica.name)
        replica.warm.clear()

    def thaw(self, replica: Replica) -> None:
        """Let it go on where it stood."""
        self.cold.discard(replica.name)
        replica.warm.set()

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Replica]:
        """One life of a service; leaving the block kills it without a word."""
        replica = self.make_replica()
        try:
            yield replica
        finally:
            await replica.die()


@dataclass(kw_only=True)
class FakeReplicas(Replicas):
    """Who holds what, as the database tells it."""

    world: StreamWorld

    @override
    async def holder(self, sandbox: SandboxId) -> Holder | None:
        row = self.world.store.conversations.get(sandbox)
        return Holder(replica=row.owner, address=row.owner) if row and row.owner in self.world.living else None

    @override
    async def others(self, *, than: str) -> Sequence[Holder]:
        return [Holder(replica=name, address=name) for name in self.world.living if name != than]

    @override
    async def holds(self, replica: str, sandbox: SandboxId) -> bool:
        row, lease = self.world.store.conversations.get(sandbox), self.world.store.leases.get(sandbox)
        return row is not None and row.owner == replica and lease is not None and lease > datetime.now(UTC)


@dataclass(kw_only=True)
class FakePeers(Peers):
    """The way to the other replicas of the same process."""

    world: StreamWorld

    @override
    async def ask(self, peer: Holder, errand: Errand, *, acquire: bool, timeout: timedelta) -> Accepted:
        self.world.errands.append((peer.replica, errand))
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                while peer.replica in self.world.frozen:
                    await asyncio.sleep(0.01)
                if peer.replica not in self.world.living:
                    raise PeerUnavailableError
                accepted = await self.world.living[peer.replica].desk.run(errand, acquire=acquire)
        except TimeoutError as error:
            raise PeerUnavailableError from error
        except MovedError as error:
            raise OwnedElsewhereError(errand.sandbox) from error
        if peer.replica in self.world.deaf:
            self.world.deaf.discard(peer.replica)
            raise PeerUnavailableError
        return accepted


class Replica:
    """The stream room, wired."""

    def __init__(self, world: StreamWorld, *, name: str) -> None:
        self.world, self.name = world, name
        world.metrics = CollectorRegistry()
        clock = WallClock()
        self.warm = asyncio.Event()
        self.warm.set()
        journal: Journal = _freezable(FakeJournal(store=world.store, dead=world.dead), self.warm)
        sessions: Sessions = FakeSessions(store=world.store)
        if world.database is not None:
            journal, sessions = PostgresJournal(world.database), PostgresSessions(world.database)
        sandboxes = world.sandboxes
        self.commit = GroupCommit(journal)
        self.feed = EventFeed(journal)
        self.hints = EventHints(
            feed=self.feed,
            journal=journal,
            wakeups=world.wakeups,
            replica=name,
            register_every=timedelta(seconds=0.5),
        )
        self.launcher = CliLauncher(connector=sandboxes.connector, sandboxes=sandboxes, journal=journal)
        self.services = Services(
            journal=journal,
            sessions=sessions,
            sandboxes=sandboxes,
            commit=self.commit,
            feed=self.feed,
            hints=self.hints,
            bills=TurnBills(world.ledger, clock, patience=timedelta(milliseconds=200)),
            launcher=self.launcher,
            clock=clock,
            ids=RandomIds(),
            tracer=world.tracer,
            metrics=StreamMetrics(world.metrics),
        )
        self.custody = Custody(self.services, replica=name, lease=world.lease, wakeups=world.wakeups)
        self.desk = ErrandDesk(self.services, self.custody)
        self.router = ErrandRouter(
            desk=self.desk,
            custody=self.custody,
            replica=name,
            replicas=FakeReplicas(world=world),
            peers=FakePeers(world=world),
            lease=world.lease,
        )
        self.hub = StreamHub(self.services, self.custody, self.router)
        self.directory = SessionDirectory(self.services, self.hub, self.router)
        world.living[name] = self
        rooms = (self.commit.run(), self.hints.run(), self.custody.run())
        self._tasks = [asyncio.create_task(room) for room in rooms]

    async def die(self) -> None:
        """End as a SIGKILL would: nothing is released."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.world.dead.add(self.name)
        self.world.living.pop(self.name, None)

    async def open(self, session: SessionId | None = None, *, caller: Caller = ADA, **more: object) -> Client:
        await asyncio.sleep(0)
        request = RequestId(f"open-{os.urandom(6).hex()}") if session is None else None
        opening = Opening(sandbox=SANDBOX, session=session, request_id=request, **more)  # type: ignore[arg-type]  # test sugar
        return Client(await self.hub.open(caller, opening))


class Client:
    """One stream of a client, with everything it has seen."""

    def __init__(self, handle: SessionHandle) -> None:
        self.handle = handle
        self.seen: list[SessionEvent] = []
        self._events = handle.events()

    @property
    def session(self) -> SessionId:
        return self.handle.session.id

    async def prompt(self, text: str, *, request_id: str | None = None) -> Accepted:
        name = RequestId(request_id or f"prompt-{os.urandom(6).hex()}")
        digest = hashlib.sha256(text.encode()).digest()
        return await self.handle.prompt(request_id=name, body_hash=digest, prompt=PromptInput(text=text))

    async def until(self, kind: type[EventBody], *, within: float = 5.0) -> EventBody:
        """Read on until an event of that kind."""
        async with asyncio.timeout(within):
            async for event in self._events:
                self.seen.append(event)
                if isinstance(event.body, kind):
                    return event.body
        raise AssertionError(f"the stream ended without {kind.__name__}")

    async def turn(self, text: str) -> TurnCompleted:
        await self.prompt(text)
        completed = await self.until(TurnCompleted)
        assert isinstance(completed, TurnCompleted)
        return completed

    @property
    def sequences(self) -> Sequence[int]:
        return [event.sequence for event in self.seen]

    @property
    def kinds(self) -> Sequence[str]:
        return [type(event.body).__name__ for event in self.seen]

    @property
    def text(self) -> str:
        return "".join(
            str(getattr(event.body, "text", "")) for event in self.seen if type(event.body).__name__ == "Text"
        )


def _freezable(journal: FakeJournal, warm: asyncio.Event) -> FakeJournal:
    """The same journal, whose every call waits while its replica stands still."""

    class Freezable:
        def __getattr__(self, name: str) -> Any:  # Any: whatever the journal has
            found = getattr(journal, name)

            async def call(*arguments: Any, **named: Any) -> Any:
                await warm.wait()
                return await found(*arguments, **named)

            return call

    return cast("FakeJournal", Freezable())


async def _shell(io: FakeIo) -> int:
    """Every script succeeds."""
    return 0
