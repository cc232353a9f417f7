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
from sandboxd.stream.conversation import Machines
from sandboxd.stream.inputs import Input, Planned, Started, StartFailed, Waking
from sandboxd.stream.ports import ActiveSandbox, Conversation, Journal, Sandboxes

log = structlog.get_logger(__name__)

START_TIMEOUT: Final = timedelta(seconds=60)
"""From the wish to a running process, the sandbox's own start included."""
FIRST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 2.0

Put = Callable[[Input], Awaitable[None]]


class Launcher(Machines, Protocol):
    """Starts the CLI in a sandbox; `stream/launch.py`."""

    async def start(self, active: ActiveSandbox, process: str, *, cli_sessions: Sequence[str]) -> None:
        """Prepare the sandbox and start the CLI under this id; what an earlier owner left running is ended first.

        `cli_sessions` are the CLI's ids of all conversations that may be loaded.
        """
        ...

    async def attach(
        self, active: ActiveSandbox, *, process: str, epoch: int, consumed: int, put: Put
    ) -> CliProcess | None:
        """The CLI's process as the agent has it, not yet running its tasks; None where the agent has none."""
        ...

    async def workspace(self, active: ActiveSandbox) -> str:
        """The workspace as the sandbox sees it."""
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
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                await self._start(epoch, cli_sessions)
        except TimeoutError:
            await self._put(StartFailed(error=UnavailableError("The sandbox was not ready for the CLI in time.")))
        except SandboxdError as error:
            await self._put(StartFailed(error=error))

    async def _start(self, epoch: int, cli_sessions: Sequence[str]) -> None:
        before = await self._sandboxes.get(self._sandbox)
        if before.state is not SandboxState.ACTIVE:
            await self._put(Waking(from_state=before.state.value))
        active = await self._sandboxes.use(self._sandbox, timeout=START_TIMEOUT)
        process = f"cli-{epoch}-{self._ids.new('prc')}"
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._put(Planned(incarnation=active.incarnation.id, process=process, done=durable))
        await durable
        failpoint("conversation.process_planned")
        await self._launcher.start(active, process, cli_sessions=cli_sessions)
        failpoint("conversation.process_started")
        cli = await self._launcher.attach(active, process=process, epoch=epoch, consumed=0, put=self._put)
        if cli is None:
            raise UnavailableError("The CLI ended as soon as it was started.", process=process)
        await self._put(Started(cli=cli, workspace=await self._launcher.workspace(active)))

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
        cli.write(
            await self._journal.pending_stdin(self._sandbox, incarnation=active.incarnation.id, process=row.process)
        )
        return Found(cli=cli, workspace=await self._launcher.workspace(active))

    async def _life_is_over(self, incarnation: IncarnationId) -> bool:
        try:
            return await self._sandboxes.incarnation_lost(self._sandbox, incarnation)
        except (UnavailableError, DeadlineError):
            return False
