"""Getting the CLI up: the sandbox made ready, a process made durable and started, or found again after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import structlog

from sandboxd.model.errors import DeadlineError, SandboxdError, UnavailableError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.sandbox import SandboxState
from sandboxd.model.sources import IdSource
from sandboxd.stream.cli_process import CliProcess
from sandboxd.stream.conversation import CLI_PREFIX, HEADLESS, Machines
from sandboxd.stream.dialect import Spawn
from sandboxd.stream.inputs import Input, Planned, Prepared, Spawned, Started, StartFailed, Waking
from sandboxd.stream.ports import ActiveSandbox, Conversation, Journal, Sandboxes
from sandboxd.stream.reports import Exited

log = structlog.get_logger(__name__)

START_TIMEOUT: Final = timedelta(seconds=60)
"""From a sandbox that is awake to a running process."""
WAKE_TIMEOUT: Final = timedelta(minutes=17)
"""For the sandbox's own start: a minute, and what a node may take for its image. A start that fails ends it earlier."""
LIVES_TRIED: Final = 3
"""How many lives of a sandbox one start looks at, where one after the other is found over."""
DOUBT_SECONDS: Final = 5.0
"""How long an agent that does not answer is asked about: a cluster tells of a container's end a second or two after."""
FIRST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 2.0

Put = Callable[[Input], Awaitable[None]]


class Launcher(Machines, Protocol):
    """Starts the CLI in a sandbox; `stream/launch.py`."""

    async def prepare(self, active: ActiveSandbox, process: str, *, cli_sessions: Sequence[str]) -> None:
        """Make the sandbox ready for the CLI; what an earlier owner left running is ended first.

        `cli_sessions` are the CLI's ids of all conversations that may be loaded.
        """
        ...

    async def start(self, active: ActiveSandbox, process: str, *, spawn: Spawn | None = None) -> None:
        """Start the CLI under this id: in ACP mode, or as a headless run."""
        ...

    async def attach(
        self, active: ActiveSandbox, *, process: str, epoch: int, consumed: int, put: Put
    ) -> CliProcess | None:
        """The CLI's process as the agent has it, not yet running its tasks; None where the agent has none."""
        ...

    async def workspace(self, active: ActiveSandbox) -> str:
        """The workspace as the sandbox sees it."""
        ...

    async def reach(self, active: ActiveSandbox) -> None:
        """Make sure that this life is there and its agent answers.

        Raises:
            UnavailableError: It is not, or it does not.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A process that an earlier owner started."""

    cli: CliProcess
    workspace: str


class CliStarter:
    """Starts the CLI of one conversation and finds it again. Everything it learns becomes an input of the owner."""

    def __init__(
        self,
        sandbox: SandboxId,
        *,
        launcher: Launcher,
        sandboxes: Sandboxes,
        journal: Journal,
        ids: IdSource,
        put: Put,
    ) -> None:
        self._sandbox = sandbox
        self._launcher = launcher
        self._sandboxes = sandboxes
        self._journal = journal
        self._ids = ids
        self._put = put

    async def start(self, epoch: int, cli_sessions: Sequence[str]) -> None:
        """Make the sandbox ready and start the CLI; `Started` or `StartFailed` follows."""
        try:
            active = await self._wake()
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                await self._start(active, epoch, cli_sessions)
        except TimeoutError:
            await self._put(StartFailed(error=UnavailableError("The sandbox was not ready for the CLI in time.")))
        except SandboxdError as error:
            await self._put(StartFailed(error=error))

    async def _start(self, active: ActiveSandbox, epoch: int, cli_sessions: Sequence[str]) -> None:
        process = f"{CLI_PREFIX}{epoch}-{self._ids.new('prc')}"
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._put(Planned(incarnation=active.incarnation.id, process=process, done=durable))
        await durable
        failpoint("conversation.process_planned")
        await self._launcher.prepare(active, process, cli_sessions=cli_sessions)
        await self._launcher.start(active, process)
        failpoint("conversation.process_started")
        cli = await self._launcher.attach(active, process=process, epoch=epoch, consumed=0, put=self._put)
        if cli is None:
            raise UnavailableError("The CLI ended as soon as it was started.", process=process)
        await self._put(Started(cli=cli, workspace=await self._launcher.workspace(active)))

    async def prepare(self, cli_sessions: Sequence[str]) -> None:
        """Make the sandbox ready for headless runs; `Prepared` or `StartFailed` follows."""
        try:
            active = await self._wake()
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                await self._launcher.prepare(active, self._ids.new("prc"), cli_sessions=cli_sessions)
                workspace = await self._launcher.workspace(active)
                await self._put(Prepared(incarnation=active.incarnation.id, workspace=workspace))
        except TimeoutError:
            await self._put(StartFailed(error=UnavailableError("The sandbox was not ready for the CLI in time.")))
        except SandboxdError as error:
            await self._put(StartFailed(error=error))

    async def spawn(self, row: Conversation, spawn: Spawn) -> None:
        """Start one headless run that is durable; `Spawned` or `Exited` follows."""
        try:
            active = await self._wake()
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                if active.incarnation.id != row.incarnation:
                    raise UnavailableError("The sandbox has stopped.", sandbox=self._sandbox)
                await self._launcher.start(active, row.process, spawn=spawn)
                found = await self._find(row)
            if found is not None:
                await self._put(Spawned(cli=found.cli))
                return
            reason = "the run ended as soon as it was started"
        except (SandboxdError, TimeoutError) as error:
            reason = str(error)
        await self._put(Exited(process=row.process, exit_code=None, signal=None, stderr_tail=reason))

    async def rouse(self) -> None:
        """Have the sandbox awake for a CLI that is there already; counts as use.

        Raises:
            SandboxdError: It cannot be, now or for good.
        """
        if (await self._sandboxes.get(self._sandbox)).state is SandboxState.ACTIVE:
            await self._sandboxes.touch(self._sandbox)
        else:
            await self._wake()

    async def _wake(self) -> ActiveSandbox:
        before = await self._sandboxes.get(self._sandbox)
        if before.state is not SandboxState.ACTIVE:
            await self._put(Waking(from_state=before.state.value))
        for _ in range(LIVES_TRIED):
            active = await self._sandboxes.use(self._sandbox, timeout=WAKE_TIMEOUT)
            try:
                await self._launcher.reach(active)
            except UnavailableError:
                # A life that is just ending, a pod that is being deleted for example, and nobody has noted it yet.
                if not await self._ends(active.incarnation.id):
                    raise
            else:
                return active
        raise UnavailableError("The sandbox ends as soon as it is started. Try again.", sandbox=self._sandbox)

    async def reattach(self, row: Conversation) -> Found | None:
        """The process that the journal names, with its unwritten records; None where it is gone for good."""
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                return await self._find(row)
            except (UnavailableError, DeadlineError) as error:
                log.info("conversation.process_unknown", sandbox=self._sandbox, error=str(error))
            if row.incarnation is not None and await self._life_is_over(row.incarnation):
                return None
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_RETRY_SECONDS)

    async def _find(self, row: Conversation) -> Found | None:
        active = await self._sandboxes.present(self._sandbox)
        if active is None or active.incarnation.id != row.incarnation:
            return None
        cli = await self._launcher.attach(
            active, process=row.process, epoch=row.epoch, consumed=row.consumed, put=self._put
        )
        if cli is None:
            return None
        records = await self._journal.pending_stdin(
            self._sandbox, incarnation=active.incarnation.id, process=row.process
        )
        cli.write(records, close_stdin=row.dialect == HEADLESS)
        return Found(cli=cli, workspace=await self._launcher.workspace(active))

    async def _ends(self, incarnation: IncarnationId) -> bool:
        end = asyncio.get_running_loop().time() + DOUBT_SECONDS
        while not await self._life_is_over(incarnation):
            if asyncio.get_running_loop().time() >= end:
                return False
            await asyncio.sleep(FIRST_RETRY_SECONDS)
        return True

    async def _life_is_over(self, incarnation: IncarnationId) -> bool:
        try:
            return await self._sandboxes.incarnation_lost(self._sandbox, incarnation)
        except (UnavailableError, DeadlineError):
            return False
