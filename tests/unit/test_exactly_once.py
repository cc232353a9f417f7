"""Exactly once: whatever step a service dies at, its next life gives the same log, and the CLI gets each prompt once.

The world here is the journal's truth (rows, log, stdin records) and the process at the agent; both outlive the service.
A run is repeated with a death at every single step, and its log is compared with the one of a run without any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from sandboxd.model.events import (
    Error,
    EventBody,
    PermissionRequest,
    SessionEvent,
    SessionOpened,
    Text,
    TurnCompleted,
    TurnStarted,
    Usage,
)
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId, SessionId, TurnId
from sandboxd.model.session import PromptInput, Session, StopReason, Turn, TurnState
from sandboxd.stream import dialects
from sandboxd.stream.book import ConversationBook
from sandboxd.stream.conversation import LiveConversation
from sandboxd.stream.dialect import Dialect, DialectName, TurnBill
from sandboxd.stream.ports import Command, Conversation, Entry, StdinRecord
from tests.fakes.cli import FakeCli

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SANDBOX = SandboxId("sbx-00000000000000000000000001")
SESSION = SessionId("ses-00000000000000000000000001")
INCARNATION = IncarnationId("inc-00000000000000000000000001")


class DiedError(Exception):
    """The service was killed at this step."""


class StillClock:
    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


class Machines:
    dialect = DialectName.ACP.value

    def machine(self, dialect: str) -> Dialect:
        return dialects.make(DialectName(dialect))

    def restore(self, dialect: str, snapshot: Mapping[str, Any], prompts: Mapping[TurnId, PromptInput]) -> Dialect:
        return dialects.restore(DialectName(dialect), snapshot, prompts=prompts)


@dataclass(kw_only=True)
class World:
    """What outlives the service."""

    row: Conversation = field(default_factory=lambda: Conversation(sandbox=SANDBOX, epoch=1, owner="me"))
    session: Session = field(
        default_factory=lambda: Session(
            id=SESSION,
            sandbox=SANDBOX,
            client=ClientId("acme"),
            freelancer=FreelancerId("ada"),
            head_sequence=1,
            create_time=NOW,
            update_time=NOW,
        )
    )
    turns: dict[TurnId, Turn] = field(default_factory=dict)
    log: list[SessionEvent] = field(
        default_factory=lambda: [
            SessionEvent(session=SESSION, sequence=1, turn=None, event_time=NOW, body=SessionOpened())
        ]
    )
    commands: dict[str, Command] = field(default_factory=dict)
    records: list[StdinRecord] = field(default_factory=list)
    processes: dict[str, FakeCli] = field(default_factory=dict)
    ids: int = 0

    def new(self, prefix: str) -> str:
        self.ids += 1
        return f"{prefix}-{self.ids:026d}"

    def append(self, entry: Entry) -> None:
        if entry.conversation.process != self.row.process:
            self.records = []
        self.row = entry.conversation
        for event in entry.events:
            assert event.sequence == self.log[-1].sequence + 1, "a gap or a repetition in the log"
            self.log.append(event)
        for session in entry.sessions:
            self.session = session
        for turn in entry.turns:
            self.turns[turn.id] = turn
        for command in entry.commands:
            assert command.request_id not in self.commands, "a command was done twice"
            self.commands[command.request_id] = command
        if entry.stdin is not None:
            self.records.append(entry.stdin)

    @property
    def open_turns(self) -> list[Turn]:
        return [turn for turn in self.turns.values() if turn.state not in (TurnState.COMPLETED, TurnState.FAILED)]

    @property
    def prompts(self) -> list[str]:
        return [text for process in self.processes.values() for text in process.prompts]

    @property
    def bodies(self) -> list[EventBody]:
        return [event.body for event in self.log]


class Service:
    """One life of the service: what `owner.py` does, without waiting for anything; `step` may be the last."""

    def __init__(self, world: World, step: Callable[[], None]) -> None:
        self.world, self.step = world, step
        row = world.row
        book = ConversationBook(row, sessions=[world.session], turns=world.open_turns, clock=StillClock(), ids=world)
        self.conversation = LiveConversation(book, Machines())
        self.process = row.process if row.process in world.processes else ""
        self.taken = row.consumed
        self.conversation.recovered(process=self.process, workspace="/workspace")
        self.commit()

    def commit(self) -> None:
        entry = self.conversation.entry()
        if entry is not None:
            self.step()  # before the append
            self.world.append(entry)
            self.step()  # after it, before anything is seen or written
        if self.process:
            for record in self.world.records:
                self.world.processes[self.process].write(record.offset, record.data)
                self.step()

    def do(self, request_id: str, run: Callable[[LiveConversation], TurnId | None]) -> None:
        """A client's command, sent again after every death until it is acknowledged."""
        if request_id in self.world.commands:
            return
        turn = run(self.conversation)
        command = Command(
            client=ClientId("acme"), request_id=RequestId(request_id), body_hash=b"", session=SESSION, turn=turn
        )
        self.conversation.remember(command)
        self.commit()

    def settle(self, *, cut: int) -> None:
        """Move until nothing happens any more; output arrives `cut` bytes at a time."""
        while True:
            if self.conversation.needs_cli:
                self.start()
            elif self.process and self.taken < len(self.world.processes[self.process].stdout):
                data = self.world.processes[self.process].stdout[self.taken : self.taken + cut]
                self.taken += len(data)
                self.conversation.output(self.process, data)
                self.commit()
            elif self.process and self.world.processes[self.process].exited:
                self.conversation.exited(self.process, exit_code=1, signal=None, stderr_tail="")
                self.process = ""
                self.commit()
            elif self.conversation.finishing:
                turn = self.conversation.finishing[0]
                self.conversation.billed(turn, TurnBill(usage=[usage_of(turn)]))
                self.commit()
            else:
                return

    def start(self) -> None:
        process = self.world.new("cli")
        self.conversation.planned(incarnation=INCARNATION, process=process)
        self.commit()
        self.world.processes[process] = FakeCli()
        self.step()
        self.process, self.taken = process, 0
        self.conversation.started(process, workspace="/workspace")
        self.commit()


def usage_of(turn: TurnId) -> Usage:
    return Usage(
        usage_event=f"use-{turn}",
        model="gemini-2.5-flash",
        prompt_tokens=100,
        cached_tokens=0,
        output_tokens=5,
        thoughts_tokens=0,
        tool_use_tokens=0,
        total_tokens=105,
        cost_micros=7,
        currency="USD",
    )


def a_prompt(text: str) -> Callable[[LiveConversation], TurnId]:
    def run(conversation: LiveConversation) -> TurnId:
        request_id = RequestId(f"prompt-{text.replace(' ', '-')}")
        turn = conversation.book.start_turn(SESSION, request_id=request_id, prompt=PromptInput(text=text))
        conversation.prompt(turn)
        return turn.id

    return run


def an_answer(world: World) -> Callable[[LiveConversation], None]:
    def run(conversation: LiveConversation) -> None:
        asked = [body for body in world.bodies if isinstance(body, PermissionRequest)]
        conversation.answer(SESSION, permission=asked[-1].permission, option="proceed_once", request_id="answer-1")

    return run


def use(world: World, *, die_at: int | None = None, cut: int = 37) -> int:
    """Two turns, one with a permission, with at most one death; answers how many steps there were."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == die_at:
            raise DiedError

    def lives() -> Iterator[Service]:
        while True:
            try:
                service = Service(world, step)
            except DiedError:
                continue
            yield service

    for service in lives():
        try:
            service.settle(cut=cut)
            service.do("request-1", a_prompt("tool one two three"))
            service.settle(cut=cut)
            service.do("request-2", a_prompt("ask may I"))
            service.settle(cut=cut)
            service.do("request-3", an_answer(world))
            service.settle(cut=cut)
        except DiedError:
            continue
        return steps
    raise AssertionError("unreachable")


def comparable(world: World) -> list[tuple[str, object]]:
    """The log without ids that a later start gives anew."""
    return [(type(body).__name__, getattr(body, "text", getattr(body, "stop_reason", None))) for body in world.bodies]


def test_a_death_at_any_step_leaves_the_log_as_it_would_have_been_and_each_prompt_is_paid_once() -> None:
    calm = World()
    steps = use(calm)
    assert steps > 20
    assert calm.prompts == ["tool one two three", "ask may I"]

    for die_at in range(1, steps + 1):
        world = World()

        use(world, die_at=die_at)

        assert comparable(world) == comparable(calm), f"died at step {die_at}"
        assert world.prompts == calm.prompts, f"died at step {die_at}"
        assert world.session.open_turn is None


@pytest.mark.parametrize("cut", [1, 7, 64, 100_000])
def test_the_log_does_not_depend_on_how_the_output_is_cut(cut: int) -> None:
    calm, world = World(), World()
    use(calm)

    use(world, cut=cut)

    assert comparable(world) == comparable(calm)


def test_a_cli_that_dies_in_a_turn_ends_it_with_an_error_and_the_next_prompt_works() -> None:
    world = World()
    service = Service(world, lambda: None)
    service.do("request-1", a_prompt("die half way"))
    service.settle(cut=64)

    service.do("request-2", a_prompt("say again"))
    service.settle(cut=64)

    ends = [body.stop_reason for body in world.bodies if isinstance(body, TurnCompleted)]
    assert ends == [StopReason.INTERRUPTED, StopReason.END_TURN]
    assert [body.reason for body in world.bodies if isinstance(body, Error)] == ["CLI_EXITED"]
    assert len(world.processes) == 2


def test_a_prompt_that_waits_for_the_cli_is_sent_once_when_it_is_up() -> None:
    world = World()
    service = Service(world, lambda: None)

    service.do("request-1", a_prompt("say hello"))

    assert [type(body) for body in world.bodies] == [SessionOpened, TurnStarted]
    assert world.open_turns[0].state is TurnState.QUEUED
    service.settle(cut=64)
    assert world.prompts == ["say hello"]
    assert "".join(body.text for body in world.bodies if isinstance(body, Text)) == "hello "


def test_model_calls_are_attributed_by_the_placeholder_of_the_session() -> None:
    world = World()
    service = Service(world, lambda: None)
    service.do("request-1", a_prompt("say hello"))

    service.settle(cut=64)

    assert [hint for process in world.processes.values() for hint in process.hints] == [f"sbxd-{SESSION}"]


def test_a_queued_prompt_that_is_cancelled_is_never_sent() -> None:
    world = World()
    service = Service(world, lambda: None)
    service.do("request-1", a_prompt("say hello"))

    service.conversation.cancel(SESSION, request_id="request-2")
    service.commit()
    service.settle(cut=64)

    assert world.prompts == []
    assert [body.stop_reason for body in world.bodies if isinstance(body, TurnCompleted)] == [StopReason.CANCELLED]
