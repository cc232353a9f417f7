"""What a conversation does with what happens to it: the machine and the book moved together, without I/O.

The owner (`stream/owner.py`) brings inputs and commits; this decides. It keeps the invariant that every open turn is
either the machine's, or waits (QUEUED) for a CLI that `needs_cli` asks for, or is ended here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import structlog

from sandboxd.model.errors import ConflictError, OpenTurnsError, PermissionNotOpenError, SandboxdError, UnavailableError
from sandboxd.model.events import CancelRequested, Error, Notice, Waking
from sandboxd.model.ids import IncarnationId, SandboxId, SessionId, TurnId
from sandboxd.model.session import PromptInput, StopReason, Turn, TurnState
from sandboxd.stream.book import ConversationBook
from sandboxd.stream.dialect import Dialect, DialectName, Spawn, Step, TurnBill
from sandboxd.stream.ports import Command, Entry

log = structlog.get_logger(__name__)

MAX_QUICK_EXITS: Final = 2
"""Times that the CLI may end before it opened a session until its waiting prompts are given up."""
MAX_REMEMBERED_COMMANDS: Final = 1024
CLI_PREFIX: Final = "cli-"
"""Process ids of the CLI begin with it, so that a leftover of an earlier owner is known."""
HEADLESS: Final = DialectName.HEADLESS.value


class Machines(Protocol):
    """Makes dialect machines."""

    @property
    def dialect(self) -> str:
        """Name of the dialect that new processes speak."""
        ...

    def machine(self, dialect: str) -> Dialect:
        """A fresh machine."""
        ...

    def restore(self, dialect: str, snapshot: Mapping[str, Any], prompts: Mapping[TurnId, PromptInput]) -> Dialect:
        """A machine as it was when the snapshot was taken; `prompts` are those of the open turns."""
        ...


class LiveConversation:
    """The CLI of one sandbox with all its sessions, as this replica drives it."""

    def __init__(self, book: ConversationBook, machines: Machines) -> None:
        self.book = book
        self._machines = machines
        self._machine: Dialect | None = None
        self._process = ""
        """The process that output is taken from; empty while there is none."""
        self._up = False
        """True while sessions can be opened and prompted in."""
        self._spawn: Spawn | None = None
        self._interrupt = False
        self.dialect = machines.dialect
        """What the next CLI speaks."""
        self._workspace = ""
        self._wanted: set[SessionId] = set()
        self._opened = False
        """True when the present CLI has opened a session."""
        self._quick_exits = 0
        self._seen: dict[str, Command] = {}
        self.closing = False
        """True while the CLI is being ended on purpose: nothing new is started."""

    # ------------------------------------------------------------------ for the owner

    @property
    def sandbox(self) -> SandboxId:
        """Whose conversation it is."""
        return self.book.row.sandbox

    @property
    def busy(self) -> bool:
        """True while a turn is open."""
        return bool(self.book.open_turns)

    @property
    def needs_cli(self) -> bool:
        """True while a session is wanted and no CLI is there or on its way."""
        return (
            not self._process
            and not self._up
            and not self.closing
            and not self.finishing
            and bool(self._present_wishes())
        )

    @property
    def finishing(self) -> Sequence[TurnId]:
        """Turns whose bill is to be collected."""
        return () if self._machine is None else tuple(item.turn for item in self._machine.finishing)

    def entry(self) -> Entry | None:
        """Everything that changed since the last entry, for the journal."""
        snapshot: Mapping[str, Any] = {}
        consumed = self.book.row.consumed
        if self._machine is not None:
            self._absorb(self._machine.take())
            snapshot = self._machine.snapshot()
            consumed = self._machine.consumed if self._process else consumed
        return self.book.entry(consumed=consumed, snapshot=snapshot)

    def close_idle(self) -> None:
        """Begin to close, unless a turn is open. Prompts that come from now on wait for the next CLI.

        Raises:
            OpenTurnsError: One is.
        """
        if self.busy:
            raise OpenTurnsError(self.sandbox, turns=len(self.book.open_turns))
        self.closing = True

    def take_spawn(self) -> Spawn | None:
        """The run that the headless dialect needs under the book's process id, now that it is durable."""
        spawn, self._spawn = self._spawn, None
        return spawn

    def take_interrupt(self) -> bool:
        """Whether the headless dialect wants its process to end."""
        interrupt, self._interrupt = self._interrupt, False
        return interrupt

    # ------------------------------------------------------------------ what people do

    def seen(self, request_id: str) -> Command | None:
        """A command that was taken here, in case the journal was asked before it was durable."""
        return self._seen.get(request_id)

    def remember(self, command: Command) -> None:
        """Make a command durable with what it changes."""
        self.book.command(command)
        self._seen[command.request_id] = command
        if len(self._seen) > MAX_REMEMBERED_COMMANDS:
            del self._seen[next(iter(self._seen))]

    def want(self, session: SessionId) -> None:
        """Somebody wants to use a session: have the CLI up with the session open."""
        self._wanted.add(session)
        if self._up and not self.closing:
            self._open(session)

    def prompt(self, turn: Turn) -> None:
        """Give an accepted prompt to the CLI, now or when it is up."""
        self.want(turn.session)
        if self._up and not self.closing and self._machine is not None:
            self._machine.prompt(turn.session, turn.id, turn.prompt)

    def answer(self, session: SessionId, *, permission: str, option: str, request_id: str) -> None:
        """Answer a permission request. Raises PermissionNotOpenError, InvalidRequestError."""
        if self._machine is None or not self._machine.is_open(session):
            raise PermissionNotOpenError(permission)
        self._machine.answer(session, permission=permission, option=option, request_id=request_id)

    def cancel(self, session: SessionId, *, request_id: str = "", reason: str = "") -> None:
        """Cancel the open turn of a session; none is success."""
        turn = self.book.turn_of(session)
        if turn is None:
            return
        if self._machine is not None and self._machine.open_turn(session) == turn.id:
            self._machine.cancel(session, request_id=request_id, reason=reason)
        elif turn.state is TurnState.QUEUED:
            self.book.emit(session, CancelRequested(request_id=request_id, reason=reason), turn=turn.id)
            self.book.end_turn(turn, StopReason.CANCELLED)

    def set_mode(self, session: SessionId, mode: str, *, request_id: str) -> bool:
        """Set a session's mode; False where the CLI does not have it open: then it is the book's to keep."""
        return self._set(session, lambda machine: machine.set_mode(session, mode, request_id=request_id))

    def set_model(self, session: SessionId, model: str, *, request_id: str) -> bool:
        """Set a session's model; False where the CLI does not have it open."""
        return self._set(session, lambda machine: machine.set_model(session, model, request_id=request_id))

    def forget(self, session: SessionId) -> None:
        """A session is deleted: let the CLI forget it."""
        if self._machine is not None and self._machine.is_open(session):
            self._machine.close(session)
        self._wanted.discard(session)
        self.book.forget(session)

    # ------------------------------------------------------------------ what the world does

    def waking(self, from_state: str) -> None:
        """The sandbox is not ready and is being made so."""
        for session in self._present_wishes():
            turn = self.book.turn_of(session)
            self.book.emit(session, Waking(from_state=from_state), turn=turn.id if turn else None)

    def planned(self, *, incarnation: IncarnationId, process: str) -> None:
        """A process was named; it is started when this is durable. Headless: the sandbox is ready for processes."""
        self.book.set_process(incarnation=incarnation, process=process, dialect=self.dialect)
        self._machine = self._machines.machine(self.dialect)
        self._process, self._up, self._opened = process, False, False

    def started(self, process: str, *, workspace: str) -> None:
        """The process runs: greet it, open what is wanted, give it what waits."""
        if process != self._process or self._machine is None:
            return
        self._workspace = workspace
        self._machine.start()
        self._up = True
        for session in self._present_wishes():
            self._open(session)
        self._sort_out_turns()

    def start_failed(self, error: SandboxdError) -> None:
        """There is no CLI and there will be none for now: say so to those who wait."""
        if self.book.row.process:
            self.book.clear_process()
        self._machine, self._process, self._up = None, "", False
        for session in self._present_wishes():
            turn = self.book.turn_of(session)
            body = Error(
                reason=error.reason,
                message=error.message,
                retryable=isinstance(error, UnavailableError | ConflictError),
                request_id=turn.request_id if turn else "",
            )
            self.book.emit(session, body, turn=turn.id if turn else None)
            if turn is not None:
                self.book.end_turn(turn, StopReason.ERROR)
        self._wanted.clear()

    def output(self, process: str, data: bytes) -> None:
        """The CLI wrote something."""
        if process == self._process and self._machine is not None:
            self._machine.feed(data)

    def exited(self, process: str, *, exit_code: int | None, signal: int | None, stderr_tail: str) -> None:
        """The CLI has ended, and all its output was taken; or its sandbox's life is over."""
        if process != self._process or self._machine is None:
            return
        opened = self._opened
        log.info("cli.exited", sandbox=self.sandbox, exit_code=exit_code, signal=signal, opened=opened)
        self._machine.exited(exit_code=exit_code, signal=signal, stderr_tail=stderr_tail)
        life_is_over = exit_code is None and signal is None
        self._process, self._up = "", self.dialect == HEADLESS and not life_is_over
        self.book.clear_process()
        if self._up:
            return
        # A session that nobody prompts in is opened again by its next use, not by the exit.
        self._wanted = {turn.session for turn in self.book.open_turns if turn.state is TurnState.QUEUED}
        self._quick_exits = 0 if opened else self._quick_exits + 1
        if self._quick_exits >= MAX_QUICK_EXITS:
            self._quick_exits = 0
            self._fall_back()

    def billed(self, turn: TurnId, bill: TurnBill) -> None:
        """The ledger's answer for a turn that is finishing."""
        if self._machine is not None:
            self._machine.finish(turn, bill)

    def give_up_queued(self) -> None:
        """End what the CLI never got, because the sandbox is being closed."""
        for turn in self.book.open_turns:
            if turn.state is TurnState.QUEUED:
                self.book.end_turn(turn, StopReason.INTERRUPTED)
        self._wanted.clear()

    def recovered(self, *, process: str, workspace: str) -> None:
        """Take up what an earlier owner left. `process` is empty where what the journal names is gone."""
        row = self.book.row
        if row.snapshot:
            prompts = {turn.id: turn.prompt for turn in self.book.open_turns}
            self._machine = self._machines.restore(row.dialect, row.snapshot, prompts)
        if process and self._machine is not None:
            self._process, self._workspace, self._up = process, workspace, True
            self.dialect = row.dialect
            if row.written == 0:
                self._machine.start()  # the owner before died between starting the process and greeting it
            self._wanted |= {name for name in self.book.sessions if self._machine.is_open(name)}
            log.info("conversation.recovered", sandbox=self.sandbox, epoch=row.epoch, consumed=row.consumed)
        elif row.process:
            if self._machine is not None:
                self._machine.exited(exit_code=None, signal=None)
                self._absorb(self._machine.take())
            self.book.clear_process()
        self._sort_out_turns()

    # ------------------------------------------------------------------ inside

    def _sort_out_turns(self) -> None:
        """Every open turn is the machine's, or is given to it, or waits for one, or is ended."""
        for turn in self.book.open_turns:
            machine = self._machine
            known = machine is not None and (machine.open_turn(turn.session) == turn.id or turn.id in self.finishing)
            if known:
                continue
            if turn.state is TurnState.QUEUED:
                self.prompt(turn)
            else:
                notice = Notice(code="TURN_LOST", message="The CLI's process is gone; the turn could not go on.")
                self.book.emit(turn.session, notice, turn=turn.id)
                self.book.end_turn(turn, StopReason.INTERRUPTED)

    def _fall_back(self) -> None:
        """ACP does not come up in this sandbox: go on with a process per prompt, and say what that means."""
        self.dialect = HEADLESS
        message = (
            "Gemini CLI ended twice before it opened the session. It now runs once per prompt: without thoughts, and "
            "without asking before it uses tools that the approval mode allows."
        )
        log.warning("cli.fell_back", sandbox=self.sandbox)
        for session in self._present_wishes():
            turn = self.book.turn_of(session)
            self.book.emit(session, Notice(code="CLI_FALLBACK", message=message), turn=turn.id if turn else None)

    def _absorb(self, step: Step) -> None:
        if step.spawn is not None:
            name = f"{CLI_PREFIX}{self.book.row.epoch}-{self.book.new_id('prc')}"
            self.book.set_process(incarnation=self.book.row.incarnation, process=name, dialect=self.dialect)
            self._process, self._spawn = name, step.spawn
            step = replace(step, stdin=step.stdin + step.spawn.stdin)
        self._interrupt = self._interrupt or step.interrupt
        self._opened = self._opened or any(change.open for change in step.sessions)
        self.book.absorb(step)

    def _open(self, session: SessionId) -> None:
        if self._machine is None or self._machine.is_open(session):
            return
        row = self.book.session(session)
        self._machine.open(
            session,
            cli_session=row.cli_session if self._was_prompted(session) else "",
            cwd=self._workspace,
            mode=row.mode,
            model=row.model,
            hint=f"sbxd-{session}",
        )

    def _was_prompted(self, session: SessionId) -> bool:
        """Whether the CLI ever got a prompt in a session: it keeps nothing of one in which it did not."""
        turn = self.book.turn_of(session)
        waiting = turn is not None and turn.state is TurnState.QUEUED
        return self.book.session(session).turns > (1 if waiting else 0)

    def _set(self, session: SessionId, change: Callable[[Dialect], None]) -> bool:
        if self._machine is None or not self._up or not self._machine.is_open(session):
            return False
        change(self._machine)
        return True

    def _present_wishes(self) -> Sequence[SessionId]:
        return sorted(self._wanted & self.book.sessions.keys())
