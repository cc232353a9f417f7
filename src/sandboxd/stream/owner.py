"""The owner of one conversation: the one task that feeds its machine, commits its steps and shows its events.

Everything that happens arrives as an input in one bounded queue. The loop takes what has gathered, applies it to the
machine and the book, makes it durable in one append, and only then lets it be seen: events to watchers, results to
callers, stdin records to the CLI. A stale epoch ends the owner at once; nothing it did after its last append was seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar, assert_never

import structlog

from sandboxd.model.errors import (
    ConflictError,
    DeadlineError,
    PermissionNotOpenError,
    SandboxdError,
    StaleOwnerError,
    UnavailableError,
)
from sandboxd.model.events import CancelRequested, Error, Notice
from sandboxd.model.events import Waking as WakingEvent
from sandboxd.model.ids import IncarnationId, SandboxId, SessionId, TurnId
from sandboxd.model.sandbox import SandboxState
from sandboxd.model.session import PromptInput, StopReason, Turn, TurnState
from sandboxd.model.sources import Clock, IdSource
from sandboxd.stream.billing import TurnBills
from sandboxd.stream.book import ConversationBook
from sandboxd.stream.cli_process import CliProcess
from sandboxd.stream.dialect import Dialect, Step
from sandboxd.stream.feed import EventFeed
from sandboxd.stream.group_commit import GroupCommit
from sandboxd.stream.inputs import Act, Billed, Exited, Input, Lost, Output, Planned, Started, StartFailed, Waking
from sandboxd.stream.ports import ActiveSandbox, Appended, Command, Journal, Sandboxes, Sessions

log = structlog.get_logger(__name__)

MAX_INPUTS: Final = 64
"""Inputs that may wait. Beyond it the reader waits, then the agent's spool fills, then the CLI blocks."""
MAX_BATCH_BYTES: Final = 512 << 10
"""Output that one step takes at most, so that a flood does not delay commands by much."""
MAX_REMEMBERED_COMMANDS: Final = 1024
MAX_QUICK_EXITS: Final = 2
"""Times that the CLI may end before it opened a session until its waiting prompts are given up."""
START_TIMEOUT: Final = timedelta(seconds=60)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What every owner of this replica shares."""

    journal: Journal
    sessions: Sessions
    sandboxes: Sandboxes
    commit: GroupCommit
    feed: EventFeed
    bills: TurnBills
    launcher: Launcher
    clock: Clock
    ids: IdSource


class Launcher(Protocol):
    """Starts the CLI in a sandbox and makes machines for it; `stream/launch.py`."""

    def machine(self, dialect: str) -> Dialect:
        """A fresh machine."""
        ...

    def restore(self, dialect: str, snapshot: Any, prompts: dict[TurnId, PromptInput]) -> Dialect:
        """A machine as it was when the snapshot was taken."""
        ...

    @property
    def dialect(self) -> str:
        """Name of the dialect that new processes speak."""
        ...

    async def start(self, active: ActiveSandbox, process: str) -> str:
        """Prepare the sandbox and start the CLI under this id; answers the workspace as the sandbox sees it."""
        ...

    async def attach(
        self, active: ActiveSandbox, *, process: str, epoch: int, consumed: int, put: Callable[[Input], Any]
    ) -> CliProcess | None:
        """The CLI's process as the agent has it, not yet running its tasks; None where the agent has none."""
        ...

    async def workspace(self, active: ActiveSandbox) -> str:
        """The workspace as the sandbox sees it."""
        ...


class ConversationOwner:
    """Owns the conversation of one sandbox in this replica, from its acquisition until it is lost or given up."""

    def __init__(self, book: ConversationBook, services: Services) -> None:
        self.book = book
        self._services = services
        self._inbox: asyncio.Queue[Input] = asyncio.Queue(MAX_INPUTS)
        self._machine: Dialect | None = None
        self._cli: CliProcess | None = None
        self._cli_task: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._billing: dict[TurnId, asyncio.Task[None]] = {}
        self._wanted: set[SessionId] = set()
        self._workspace = ""
        self._quick_exits = 0
        self._closing = ""
        self._up = False
        self._recovered = asyncio.Event()
        self._seen: dict[str, Command] = {}
        self._waiting: list[asyncio.Future[Any]] = []
        self._changed = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self.ended = False

    @property
    def sandbox(self) -> SandboxId:
        """Whose conversation it is."""
        return self.book.row.sandbox

    # ------------------------------------------------------------------ for the hub

    async def act(self, run: Callable[[], Result]) -> Result:
        """Run a change inside the loop, once recovery is through; answers when it is durable."""
        await self._recovered.wait()
        return await self._act(run)

    async def _act(self, run: Callable[[], Result]) -> Result:
        if self.ended:
            raise _moved(self.sandbox)
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        await self._inbox.put(Act(run=run, done=done))
        if self.ended and not done.done():
            raise _moved(self.sandbox)
        return await asyncio.shield(done)

    def seen(self, request_id: str) -> Command | None:
        """A command that this owner took, in case the journal was asked before it was durable."""
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
        if self._up:
            self._open(session)
        else:
            self._start_soon()

    def prompt(self, turn: Turn) -> None:
        """Give an accepted prompt to the CLI, now or when it is up."""
        self.want(turn.session)
        if self._up and self._machine is not None:
            self._machine.prompt(turn.session, turn.id, turn.prompt)

    def answer(self, session: SessionId, *, permission: str, option: str, request_id: str) -> None:
        """Answer a permission request."""
        self._require_machine(permission).answer(session, permission=permission, option=option, request_id=request_id)

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
        if self._machine is None or not self._machine.is_open(session):
            return False
        self._machine.set_mode(session, mode, request_id=request_id)
        return True

    def set_model(self, session: SessionId, model: str, *, request_id: str) -> bool:
        """Set a session's model; False where the CLI does not have it open."""
        if self._machine is None or not self._machine.is_open(session):
            return False
        self._machine.set_model(session, model, request_id=request_id)
        return True

    def forget(self, session: SessionId) -> None:
        """A session is deleted: let the CLI forget it."""
        if self._machine is not None and self._machine.is_open(session):
            self._machine.close(session)
        self._wanted.discard(session)
        self.book.forget(session)

    @property
    def busy(self) -> bool:
        """True while a turn is open."""
        return bool(self.book.open_turns)

    async def close(self, *, reason: str, grace: timedelta) -> None:
        """End the CLI; open turns end as interrupted, durably. Returns when nothing is open any more."""
        self._closing = reason
        try:
            if self._starting is not None:
                self._starting.cancel()
            if self._cli is not None:
                await self._cli.end(grace=grace)
            while not self.ended and (self._cli is not None or self.busy):
                changed = self._changed
                if self._cli is None:
                    await self._act(self._give_up_queued)
                if self._cli is None and not self.busy:
                    break
                await changed.wait()
        finally:
            self._closing = ""

    # ------------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Own the conversation until it is lost; cancel to give it up. What is committed is never undone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._recover(), name=f"conversation-recover-{self.sandbox}")
                try:
                    await self._serve()
                finally:
                    self._stop_tasks()
        except* StaleOwnerError:
            log.warning("conversation.lost", sandbox=self.sandbox, epoch=self.book.row.epoch)
        finally:
            self._end()

    async def _serve(self) -> None:
        while True:
            batch = [await self._inbox.get()]
            size = 0
            while not self._inbox.empty() and size < MAX_BATCH_BYTES:
                batch.append(self._inbox.get_nowait())
                size += len(batch[-1].data) if isinstance(batch[-1], Output) else 0
            done: list[tuple[asyncio.Future[Any], Any]] = []
            self._waiting = [item.done for item in batch if isinstance(item, Act | Planned)]
            for item in batch:
                self._apply(item, done)
            await self._commit()
            for future, result in done:
                if not future.done():
                    future.set_result(result)
            self._waiting = []
            self._after_commit()

    def _apply(self, item: Input, done: list[tuple[asyncio.Future[Any], Any]]) -> None:
        match item:
            case Act():
                try:
                    done.append((item.done, item.run()))
                except SandboxdError as error:
                    if not item.done.done():
                        item.done.set_exception(error)
            case Output():
                if self._cli is not None and item.process == self._cli.process and self._machine is not None:
                    self._machine.feed(item.data)
            case Waking():
                for session in sorted(self._wanted & self.book.sessions.keys()):
                    turn = self.book.turn_of(session)
                    self.book.emit(session, WakingEvent(from_state=item.from_state), turn=turn.id if turn else None)
            case Planned():
                self.book.set_process(
                    incarnation=item.incarnation, process=item.process, dialect=self._services.launcher.dialect
                )
                self._machine = self._services.launcher.machine(self.book.row.dialect)
                done.append((item.done, None))
            case Started():
                self._started(item)
            case StartFailed():
                self._start_failed(item.error)
            case Exited():
                self._exited(item)
            case Billed():
                if self._machine is not None:
                    self._machine.finish(item.turn, item.bill)
            case Lost():
                raise StaleOwnerError(f"The conversation of {self.sandbox} has another owner.", sandbox=self.sandbox)
            case _:
                assert_never(item)

    async def _commit(self) -> None:
        step = Step()
        if self._machine is not None:
            step = self._machine.take()
            self.book.absorb(step)
        consumed = (
            self._machine.consumed if self._cli is not None and self._machine is not None else self.book.row.consumed
        )
        snapshot = self._machine.snapshot() if self._machine is not None else {}
        entry = self.book.entry(consumed=consumed, snapshot=snapshot)
        if entry is None:
            return
        if await self._services.commit.append(entry) is Appended.STALE:
            raise StaleOwnerError(f"The conversation of {self.sandbox} has another owner.", sandbox=self.sandbox)
        self._services.feed.publish(entry.events)
        if self._cli is not None:
            self._cli.committed(entry.conversation.consumed)
            if entry.stdin is not None:
                self._cli.write([entry.stdin])

    def _after_commit(self) -> None:
        if self._machine is not None:
            for finishing in self._machine.finishing:
                self._bill(finishing.turn)
        if self._cli is None and any(session in self._wanted for session in self.book.sessions):
            self._start_soon()
        self._changed.set()
        self._changed = asyncio.Event()

    # ------------------------------------------------------------------ the CLI's life

    def _start_soon(self) -> None:
        finishing = self._machine is not None and bool(self._machine.finishing)
        held = self._closing or finishing or self._tasks is None or not self._recovered.is_set()
        if self._cli is not None or self._starting is not None or held:
            return
        assert self._tasks is not None
        self._starting = self._tasks.create_task(self._start(), name=f"cli-start-{self.sandbox}")

    async def _start(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                await self._start_steps()
        except TimeoutError:
            await self._inbox.put(StartFailed(error=UnavailableError("The sandbox was not ready for the CLI in time.")))
        except SandboxdError as error:
            await self._inbox.put(StartFailed(error=error))
        finally:
            self._starting = None

    async def _start_steps(self) -> None:
        services = self._services
        before = await services.sandboxes.get(self.sandbox)
        if before.state is not SandboxState.ACTIVE:
            await self._inbox.put(Waking(from_state=before.state.value))
        active = await services.sandboxes.use(self.sandbox, timeout=START_TIMEOUT)
        process = f"cli-{self.book.row.epoch}-{services.ids.new('prc')[4:]}"
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._inbox.put(Planned(incarnation=active.incarnation.id, process=process, done=durable))
        await durable
        workspace = await services.launcher.start(active, process)
        cli = await services.launcher.attach(
            active, process=process, epoch=self.book.row.epoch, consumed=0, put=self._inbox.put
        )
        if cli is None:
            raise UnavailableError("The CLI ended as soon as it was started.", process=process)
        self._follow(cli)
        await self._inbox.put(Started(process=process, workspace=workspace))

    def _follow(self, cli: CliProcess) -> None:
        assert self._tasks is not None
        self._cli = cli
        self._cli_task = self._tasks.create_task(cli.run(), name=f"cli-{self.sandbox}")

    def _started(self, item: Started) -> None:
        if self._machine is None or self._cli is None or item.process != self._cli.process:
            return
        self._workspace = item.workspace
        self._machine.start()
        self._up = True
        for session in sorted(self._wanted & self.book.sessions.keys()):
            self._open(session)
        self._give_queued()

    def _give_queued(self) -> None:
        assert self._machine is not None
        for turn in self.book.open_turns:
            if turn.state is TurnState.QUEUED and self._machine.open_turn(turn.session) is None:
                self._wanted.add(turn.session)
                self._open(turn.session)
                self._machine.prompt(turn.session, turn.id, turn.prompt)

    def _open(self, session: SessionId) -> None:
        assert self._machine is not None
        if self._machine.is_open(session):
            return
        row = self.book.session(session)
        self._machine.open(
            session,
            cli_session=row.cli_session,
            cwd=self._workspace,
            mode=row.mode,
            model=row.model,
            hint=f"sbxd-{session}",
        )

    def _start_failed(self, error: SandboxdError) -> None:
        log.warning("cli.start_failed", sandbox=self.sandbox, reason=error.reason, error=str(error))
        if self.book.row.process:
            self.book.clear_process()
        self._machine, self._up = None, False
        for session in sorted(self._wanted & self.book.sessions.keys()):
            turn = self.book.turn_of(session)
            self.book.emit(
                session,
                Error(
                    reason=error.reason,
                    message=error.message,
                    retryable=isinstance(error, UnavailableError | ConflictError),
                    request_id=turn.request_id if turn else "",
                ),
                turn=turn.id if turn else None,
            )
            if turn is not None:
                self.book.end_turn(turn, StopReason.ERROR)
        self._wanted.clear()

    def _exited(self, item: Exited) -> None:
        if self._cli is None or item.process != self._cli.process or self._machine is None:
            return
        opened = any(
            self._machine.is_open(session) and self.book.session(session).cli_session
            for session in self._wanted & self.book.sessions.keys()
        )
        log.info("cli.exited", sandbox=self.sandbox, exit_code=item.exit_code, signal=item.signal, opened=opened)
        self._machine.exited(exit_code=item.exit_code, signal=item.signal, stderr_tail=item.stderr_tail)
        self._cli, self._up = None, False
        self.book.clear_process()
        # A session that nobody prompts in is opened again by its next use, not by the exit.
        self._wanted = {turn.session for turn in self.book.open_turns if turn.state is TurnState.QUEUED}
        self._quick_exits = 0 if opened else self._quick_exits + 1
        if self._quick_exits >= MAX_QUICK_EXITS:
            self._quick_exits = 0
            self._give_up_queued(item.stderr_tail)

    def _give_up_queued(self, stderr_tail: str = "") -> None:
        """End what the CLI never got: it does not start, or the sandbox is being closed."""
        for turn in self.book.open_turns:
            if turn.state is not TurnState.QUEUED:
                continue
            if stderr_tail or not self._closing:
                self.book.emit(
                    turn.session,
                    Error(
                        reason="CLI_START_FAILED",
                        message="Gemini CLI ended before it opened the session. The prompt was not sent.",
                        retryable=True,
                        request_id=turn.request_id,
                    ),
                    turn=turn.id,
                )
            self.book.end_turn(turn, StopReason.INTERRUPTED)
        self._wanted.clear()

    # ------------------------------------------------------------------ recovery

    async def _recover(self) -> None:
        """Take up what an earlier owner left: its process, its turns in the middle, its unwritten records."""
        cli = await self._reattach() if self.book.row.process else None
        await self._act(lambda: self._restore(cli))
        self._recovered.set()

    async def _reattach(self) -> CliProcess | None:
        """The process that the journal names, with its unwritten records; None where it is gone for good."""
        row, services = self.book.row, self._services
        delay = 0.1
        while True:
            try:
                active = await services.sandboxes.present(self.sandbox)
                if active is None or active.incarnation.id != row.incarnation:
                    return None
                cli = await services.launcher.attach(
                    active, process=row.process, epoch=row.epoch, consumed=row.consumed, put=self._inbox.put
                )
                if cli is not None:
                    self._workspace = await services.launcher.workspace(active)
                    cli.write(
                        await services.journal.pending_stdin(
                            self.sandbox, incarnation=active.incarnation.id, process=row.process
                        )
                    )
                return cli
            except (UnavailableError, DeadlineError) as error:
                log.info("conversation.process_unknown", sandbox=self.sandbox, error=str(error))
                if row.incarnation is not None and await self._life_is_over(row.incarnation):
                    return None
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)

    async def _life_is_over(self, incarnation: IncarnationId) -> bool:
        try:
            return await self._services.sandboxes.incarnation_lost(self.sandbox, incarnation)
        except (UnavailableError, DeadlineError):
            return False

    def _restore(self, cli: CliProcess | None) -> None:
        row = self.book.row
        if row.snapshot:
            prompts = {turn.id: turn.prompt for turn in self.book.open_turns}
            self._machine = self._services.launcher.restore(row.dialect, row.snapshot, prompts)
        if cli is not None and self._machine is not None:
            if row.written == 0:
                self._machine.start()  # the owner before died between starting the process and greeting it
            self._up = True
            self._wanted |= {name for name in self.book.sessions if self._machine.is_open(name)}
            self._follow(cli)
            log.info("conversation.recovered", sandbox=self.sandbox, epoch=row.epoch, consumed=row.consumed)
        elif row.process:
            if self._machine is not None:
                self._machine.exited(exit_code=None, signal=None)
            self.book.clear_process()
        self._sort_out_turns()

    def _sort_out_turns(self) -> None:
        """Every open turn is the machine's, or is given to it, or is ended."""
        for turn in self.book.open_turns:
            known = self._machine is not None and (
                self._machine.open_turn(turn.session) == turn.id
                or any(item.turn == turn.id for item in self._machine.finishing)
            )
            if known:
                continue
            if turn.state is TurnState.QUEUED:
                self.prompt(turn)
            else:
                self.book.emit(
                    turn.session,
                    Notice(code="TURN_LOST", message="The CLI's process is gone; the turn could not be continued."),
                    turn=turn.id,
                )
                self.book.end_turn(turn, StopReason.INTERRUPTED)

    # ------------------------------------------------------------------ inside

    def _bill(self, turn: TurnId) -> None:
        if turn in self._billing or self._tasks is None:
            return
        row = self.book.turn(turn)
        started = row.start_time if row is not None else self._services.clock.now()

        async def collect() -> None:
            bill = await self._services.bills.collect(self.sandbox, turn, started=started)
            await self._inbox.put(Billed(turn=turn, bill=bill))

        task = self._tasks.create_task(collect(), name=f"turn-bill-{turn}")
        self._billing[turn] = task
        task.add_done_callback(lambda _: self._billing.pop(turn, None))

    def _require_machine(self, permission: str) -> Dialect:
        if self._machine is None:
            raise PermissionNotOpenError(permission)
        return self._machine

    def _stop_tasks(self) -> None:
        for task in (self._starting, self._cli_task, *self._billing.values()):
            if task is not None:
                task.cancel()
        self._tasks = None

    def _end(self) -> None:
        self.ended = True
        self._recovered.set()
        waiting = list(self._waiting)
        while not self._inbox.empty():
            item = self._inbox.get_nowait()
            if isinstance(item, Act | Planned):
                waiting.append(item.done)
        for future in waiting:
            if not future.done():
                future.set_exception(_moved(self.sandbox))
                future.exception()
        self._changed.set()


def _moved(sandbox: SandboxId) -> UnavailableError:
    return UnavailableError(
        "The conversation is moving to another server. Send the same request again.",
        retry_after=timedelta(milliseconds=500),
        sandbox=sandbox,
    )
