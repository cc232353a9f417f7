"""The owner of one conversation: the one task that feeds it, commits its steps and shows its events.

Everything that happens arrives as an input in one bounded queue. The loop takes what has gathered, applies it, makes it
durable in one append, and only then lets it be seen: events to watchers, results to callers, stdin records to the CLI.
A stale epoch ends the owner at once; nothing it did after its last append was seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from signal import SIGTERM
from typing import Any, Final, TypeVar, assert_never

import structlog

from sandboxd.model.errors import ConflictError, DeadlineError, SandboxdError, StaleOwnerError, UnavailableError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId, TurnId
from sandboxd.model.sources import Clock, IdSource
from sandboxd.model.trace import NO_TRACES, Tracer
from sandboxd.stream.billing import TurnBills
from sandboxd.stream.cli_process import CliProcess
from sandboxd.stream.conversation import HEADLESS, LiveConversation
from sandboxd.stream.feed import EventFeed
from sandboxd.stream.group_commit import GroupCommit
from sandboxd.stream.hints import EventHints
from sandboxd.stream.inputs import (
    Act,
    Billed,
    Input,
    Planned,
    Prepared,
    Spawned,
    Started,
    StartFailed,
    Waking,
)
from sandboxd.stream.metrics import StreamMetrics
from sandboxd.stream.moves import MovedError
from sandboxd.stream.ports import Appended, Journal, Sandboxes, Sessions
from sandboxd.stream.reports import Exited, Lost, Output
from sandboxd.stream.starting import CliStarter, Launcher
from sandboxd.stream.tracing import ConversationTraces

log = structlog.get_logger(__name__)

MAX_INPUTS: Final = 64
"""Inputs that may wait. Beyond it the reader waits, then the agent's spool fills, then the CLI blocks."""
ROUSE_RETRY_SECONDS: Final = 1.0
MAX_BATCH_BYTES: Final = 512 << 10
"""Output that one step takes at most, so that a flood does not delay commands by much."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What every owner of this replica shares."""

    journal: Journal
    sessions: Sessions
    sandboxes: Sandboxes
    commit: GroupCommit
    feed: EventFeed
    hints: EventHints
    bills: TurnBills
    launcher: Launcher
    clock: Clock
    ids: IdSource
    tracer: Tracer = NO_TRACES
    metrics: StreamMetrics = field(default_factory=StreamMetrics)


class ConversationOwner:
    """Owns the conversation of one sandbox in this replica, from its acquisition until it is lost or given up."""

    def __init__(self, conversation: LiveConversation, services: Services) -> None:
        self.conversation = conversation
        self._services = services
        self._inbox: asyncio.Queue[Input] = asyncio.Queue(MAX_INPUTS)
        self._starter = CliStarter(
            conversation.sandbox,
            launcher=services.launcher,
            sandboxes=services.sandboxes,
            journal=services.journal,
            ids=services.ids,
            put=self._inbox.put,
        )
        self._cli: CliProcess | None = None
        self._starting: asyncio.Task[None] | None = None
        self._rousing: asyncio.Task[None] | None = None
        self._rouse_again = False
        self._billing: dict[TurnId, asyncio.Task[None]] = {}
        self._recovered = asyncio.Event()
        self._waiting: list[asyncio.Future[Any]] = []
        self._changed = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._oldest = 0.0
        """When the oldest output of the present step was read, on the monotonic clock; 0 where it has none."""
        self._traces = ConversationTraces(conversation.sandbox, services.tracer, services.clock)
        self.ended = False
        self.since = asyncio.get_running_loop().time()
        """Moment of the event loop's clock from which on nobody else could write."""

    @property
    def sandbox(self) -> SandboxId:
        """Whose conversation it is."""
        return self.conversation.sandbox

    async def act(self, run: Callable[[], Result]) -> Result:
        """Run a change inside the loop, once recovery is through; answers when it is durable.

        Raises:
            MovedError: The conversation is being handed over.
            SandboxdError: What the change itself raises; then it has changed nothing.
        """
        await self._recovered.wait()
        return await self._act(run)

    async def close(self, *, grace: timedelta, only_idle: bool = False) -> None:
        """End the CLI; open turns end as interrupted, durably. Returns when nothing is open any more.

        Raises:
            OpenTurnsError: With `only_idle`: a turn is open, and nothing was done. One that begins from now on waits.
        """
        if only_idle:
            await self.act(self.conversation.close_idle)  # in the loop, so that no prompt comes between
        self.conversation.closing = True
        try:
            if self._starting is not None:
                self._starting.cancel()
                await asyncio.gather(self._starting, return_exceptions=True)
            if self._cli is not None:
                await self._cli.end(grace=grace)
            while not self.ended:
                changed = self._changed
                if self._cli is None and only_idle:
                    return
                if self._cli is None:
                    await self._act(self.conversation.give_up_queued)
                    if not self.conversation.busy:
                        return
                await changed.wait()
        finally:
            self.conversation.closing = False
            if only_idle and self.conversation.busy and not self.ended:
                await self._act(lambda: None)  # looks whether a CLI is needed

    # ------------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Own the conversation until it is lost; cancel to give it up. What is committed is never undone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                recovering = tasks.create_task(self._recover(), name=f"conversation-recover-{self.sandbox}")
                try:
                    await self._serve()
                finally:
                    self._tasks = None
                    for task in (recovering, self._starting, self._rousing, *self._billing.values()):
                        if task is not None:
                            task.cancel()
        except* StaleOwnerError:
            self._services.metrics.lost()
            log.warning("conversation.lost", sandbox=self.sandbox, epoch=self.conversation.book.row.epoch)
        finally:
            self._end()

    async def _serve(self) -> None:
        while True:
            batch = [await self._inbox.get()]
            size = 0
            while not self._inbox.empty() and size < MAX_BATCH_BYTES:
                batch.append(self._inbox.get_nowait())
                size += len(batch[-1].data) if isinstance(batch[-1], Output) else 0
            self._oldest = next((item.received for item in batch if isinstance(item, Output)), 0.0)
            self._waiting = [item.done for item in batch if isinstance(item, Act | Planned)]
            results = [result for item in batch for result in self._apply(item)]
            await self._commit()
            for future, result in results:
                if not future.done():
                    future.set_result(result)
            self._waiting = []
            self._after_commit()

    def _apply(self, item: Input) -> list[tuple[asyncio.Future[Any], Any]]:
        """Move the conversation; answers the results that become true with the commit."""
        conversation = self.conversation
        match item:
            case Act():
                try:
                    return [(item.done, item.run())]
                except SandboxdError as error:
                    if not item.done.done():
                        item.done.set_exception(error)
            case Output():
                conversation.output(item.process, item.data)
            case Waking():
                conversation.waking(item.from_state)
            case Planned():
                conversation.planned(incarnation=item.incarnation, process=item.process)
                return [(item.done, None)]
            case Started():
                self._follow(item.cli)
                conversation.started(item.cli.process, workspace=item.workspace)
            case Prepared():
                conversation.planned(incarnation=item.incarnation, process="")
                conversation.started("", workspace=item.workspace)
            case Spawned():
                self._follow(item.cli)
            case StartFailed():
                log.warning("cli.start_failed", sandbox=self.sandbox, reason=item.error.reason, error=str(item.error))
                conversation.start_failed(item.error)
            case Exited():
                conversation.exited(
                    item.process, exit_code=item.exit_code, signal=item.signal, stderr_tail=item.stderr_tail
                )
                if self._cli is not None and self._cli.process == item.process:
                    self._cli = None
            case Billed():
                conversation.billed(item.turn, item.bill)
            case Lost():
                raise StaleOwnerError(f"The conversation of {self.sandbox} has another owner.", sandbox=self.sandbox)
            case _:
                assert_never(item)
        return []

    async def _commit(self) -> None:
        entry = self.conversation.entry()
        if entry is None:
            return
        began = self._services.clock.now()
        failpoint("conversation.before_append")
        if await self._services.commit.append(entry) is Appended.STALE:
            raise StaleOwnerError(f"The conversation of {self.sandbox} has another owner.", sandbox=self.sandbox)
        failpoint("conversation.after_append")
        self._services.feed.publish(entry.events)
        if entry.events:
            self._services.hints.published(self.sandbox)
        self._services.metrics.published(entry, oldest=self._oldest)
        self._traces.committed(entry, began=began)
        self._run_headless()
        if self._cli is not None:
            self._cli.committed(entry.conversation.consumed)
            if entry.stdin is not None:
                self._cli.write([entry.stdin])
                self._rouse()

    def _run_headless(self) -> None:
        """Start and interrupt the runs that the headless dialect asked for, now that the wish is durable."""
        spawn = self.conversation.take_spawn()
        if spawn is not None and self._tasks is not None:
            row = self.conversation.book.row
            self._tasks.create_task(self._starter.spawn(row, spawn), name=f"cli-spawn-{self.sandbox}")
        if self.conversation.take_interrupt() and self._cli is not None and self._tasks is not None:
            self._tasks.create_task(self._cli.signal(SIGTERM), name=f"cli-interrupt-{self.sandbox}")

    def _after_commit(self) -> None:
        for turn in self.conversation.finishing:
            self._bill(turn)
        idle = self._cli is None and self._starting is None and self._recovered.is_set()
        if idle and self._tasks is not None and self.conversation.needs_cli:
            book = self.conversation.book
            known = [session.cli_session for session in book.sessions.values() if session.cli_session]
            headless = self.conversation.dialect == HEADLESS
            start = self._starter.prepare(known) if headless else self._starter.start(book.row.epoch, known)
            traced = self._traces.starting(start, book.open_turns)
            self._starting = self._tasks.create_task(traced, name=f"cli-start-{self.sandbox}")
            self._starting.add_done_callback(self._start_ended)
        self._changed.set()
        self._changed = asyncio.Event()

    # ------------------------------------------------------------------ tasks

    async def _recover(self) -> None:
        """Take up what an earlier owner left: its process, its turns in the middle, its unwritten records."""
        row = self.conversation.book.row
        found = await self._starter.reattach(row) if row.process else None

        def take_up() -> None:
            if found is not None:
                self._follow(found.cli)
            self.conversation.recovered(
                process=row.process if found is not None else "", workspace=found.workspace if found is not None else ""
            )

        self._recovered.set()
        await self._act(take_up)
        if self.conversation.busy:
            self._rouse()

    def _rouse(self) -> None:
        """The CLI has something to read: have the sandbox awake. Policy may freeze it in this very moment.

        After the commit, and from the database: whoever freezes it writes that first and asks for open turns then, so
        that one of us sees the other.
        """
        self._rouse_again = True
        if self._tasks is not None and (self._rousing is None or self._rousing.done()):
            self._rousing = self._tasks.create_task(self._keep_awake(), name=f"conversation-rouse-{self.sandbox}")

    async def _keep_awake(self) -> None:
        while self._rouse_again:
            self._rouse_again = False
            try:
                await self._starter.rouse()
            except (UnavailableError, ConflictError, DeadlineError) as error:
                log.info("conversation.not_woken", sandbox=self.sandbox, error=str(error))
                await asyncio.sleep(ROUSE_RETRY_SECONDS)
                self._rouse_again = self.conversation.busy
            except SandboxdError as error:
                # Paused, terminated, failed: whoever did that has ended the turns, or is about to.
                log.info("conversation.not_woken", sandbox=self.sandbox, error=str(error))

    def _follow(self, cli: CliProcess) -> None:
        if self._tasks is not None:
            self._cli = cli
            self._tasks.create_task(cli.run(), name=f"cli-{self.sandbox}")

    def _start_ended(self, task: asyncio.Task[None]) -> None:
        if self._starting is task:
            self._starting = None

    def _bill(self, turn: TurnId) -> None:
        if turn in self._billing or self._tasks is None:
            return
        row = self.conversation.book.turn(turn)
        started = row.start_time if row is not None else self._services.clock.now()

        async def collect() -> None:
            bill = await self._services.bills.collect(self.sandbox, turn, started=started)
            await self._inbox.put(Billed(turn=turn, bill=bill))

        task = self._tasks.create_task(collect(), name=f"turn-bill-{turn}")
        self._billing[turn] = task
        task.add_done_callback(lambda _: self._billing.pop(turn, None))

    async def _act(self, run: Callable[[], Result]) -> Result:
        if self.ended:
            raise MovedError(self.sandbox)
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        await self._inbox.put(Act(run=run, done=done))
        if self.ended and not done.done():
            raise MovedError(self.sandbox)
        return await asyncio.shield(done)

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
                future.set_exception(MovedError(self.sandbox))
                future.exception()  # nobody may be waiting any more
        self._changed.set()
