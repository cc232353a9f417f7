"""The local backend: each sandbox is a directory and an agent process of this machine. For development.

It promises what the other backends promise, except isolation; it says so, and what else it cannot.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import structlog
from typing_extensions import override

from sandboxd.backends.local import processes
from sandboxd.backends.local.launching import CLEAN_PATH, Launcher, endpoint_of
from sandboxd.backends.local.layout import Layout
from sandboxd.backends.local.processes import AgentProcess
from sandboxd.manager.agents import visit
from sandboxd.manager.backend_port import (
    Backend,
    BackendDescription,
    FilesSize,
    Observation,
    RunningIncarnation,
    SandboxSpec,
    Told,
    untold,
)
from sandboxd.model.errors import DeadlineError, SandboxdError, UnavailableError
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.model.sources import Clock
from sandboxd.model.startup import StartPath, StartReport, StartStep, StartStepName
from sandboxd.stream.agent_port import AgentConnector
from sandboxd.stream.ports import CliPlace

WARNING: Final = (
    "The local backend isolates nothing: sandboxes are plain processes of this machine and user, can read each other's "
    "files and yours, and the limits of their tiers are not enforced. When an agent is killed by SIGKILL, processes of "
    "its sandbox may go on until the sandbox is started, stopped or terminated next. Use it for development only."
)
EXIT_SECONDS: Final = 5.0
"""How long an agent may take to end, beyond the grace, after Shutdown or TERM."""
KILL_SECONDS: Final = 5.0
LOCK_POLL_SECONDS: Final = 0.02
REMEMBERED_REPORTS: Final = 1000
"""How incarnations came up is told of so many."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CliFiles:
    """Where this machine has the CLI."""

    node: Path
    entry: Path
    """The CLI's JavaScript file."""


class LocalBackend(Backend):
    """Places sandboxes as processes of this machine."""

    def __init__(
        self,
        *,
        data: Path,
        cli: CliFiles,
        launcher: Launcher,
        connector: AgentConnector,
        clock: Clock,
        exit_seconds: float = EXIT_SECONDS,
    ) -> None:
        self._layout = Layout(data=data.absolute())
        self._cli = cli
        self._launcher = launcher
        self._connector = connector
        self._clock = clock
        self._exit_seconds = exit_seconds
        self._locks: defaultdict[SandboxId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reports: OrderedDict[IncarnationId, StartReport] = OrderedDict()

    @override
    def describe(self) -> BackendDescription:
        return BackendDescription(
            name="local", isolates=False, keeps_root=True, warning=WARNING, recipe=str(self._cli.entry)
        )

    @override
    async def start(
        self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta, pulling: Told = untold
    ) -> AgentEndpoint:
        deadline = self._clock.monotonic() + timeout.total_seconds()
        files = self._layout.sandbox(spec.sandbox)
        await _on_disk(spec.sandbox, files.make)
        async with self._locked(spec.sandbox, deadline):
            agents = await self._agents(spec.sandbox)
            ours = next((agent for agent in agents if agent.incarnation == incarnation), None)
            for agent in agents:
                if agent is not ours:
                    log.warning("backend.stray_ended", sandbox=spec.sandbox, incarnation=agent.incarnation)
                    await self._end(agent, grace=timedelta(0))
            began = self._clock.monotonic()
            if ours is None:
                await self._clean(spec.sandbox)
                await _on_disk(spec.sandbox, lambda: files.forget_old_runs(keep=incarnation))
                pid = await asyncio.to_thread(self._launcher.spawn, spec.sandbox, incarnation, files)
            else:
                pid = ours.pid
            spawned = self._clock.monotonic()
            left, run = max(0.0, deadline - spawned), files.run(incarnation)
            endpoint = await self._launcher.wait_ready(spec.sandbox, incarnation, run, pid, seconds=left)
            if ours is None:
                self._remember(incarnation, start=spawned - began, agent=self._clock.monotonic() - spawned)
            return endpoint

    @override
    async def adopt(self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        """Do nothing: neither directories nor processes say whose they are."""

    @override
    def startup(self, incarnation: IncarnationId) -> StartReport | None:
        return self._reports.get(incarnation)

    @override
    async def stop(
        self, sandbox: SandboxId, incarnation: IncarnationId, *, grace: timedelta, timeout: timedelta
    ) -> None:
        if not self._layout.sandbox(sandbox).directory.is_dir():
            return
        async with self._locked(sandbox, self._clock.monotonic() + timeout.total_seconds()):
            agents = await self._agents(sandbox)
            for agent in agents:
                if agent.incarnation == incarnation:
                    await self._end(agent, grace=grace)
            if all(agent.incarnation == incarnation for agent in agents):
                await self._clean(sandbox)
            await _on_disk(sandbox, self._layout.sandbox(sandbox).run(incarnation).clear)

    @override
    async def resize(self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        # No limit of a tier is enforced here, as `WARNING` says: the row alone knows it.
        return

    @override
    async def shrink(self, sandbox: SandboxId, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        return  # nothing was set aside for it

    @override
    async def grow(self, sandbox: SandboxId, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        return

    @override
    async def remove(self, sandbox: SandboxId, *, timeout: timedelta) -> str:
        if self._layout.sandbox(sandbox).directory.is_dir():
            async with self._locked(sandbox, self._clock.monotonic() + timeout.total_seconds()):
                for agent in await self._agents(sandbox):
                    await self._end(agent, grace=timedelta(0))
                await self._clean(sandbox)
                await _on_disk(sandbox, lambda: self._layout.keep(sandbox))
        kept = self._layout.keep(sandbox)
        return "" if kept is None else str(kept)

    @override
    async def measure(self, sandbox: SandboxId, *, timeout: timedelta) -> FilesSize:
        async with asyncio.timeout(timeout.total_seconds()):
            files, size = await asyncio.to_thread(self._layout.measure, sandbox)
        return FilesSize(files=files, size_bytes=size)

    @override
    async def erase(self, sandbox: SandboxId, *, timeout: timedelta) -> None:
        await self.remove(sandbox, timeout=timeout)
        await _on_disk(sandbox, lambda: self._layout.erase(sandbox))

    @override
    async def observe(self, sandbox: SandboxId) -> Observation:
        return self._observation(sandbox, await self._agents(sandbox))

    @override
    async def list(self) -> Sequence[Observation]:
        by_sandbox: defaultdict[SandboxId, list[AgentProcess]] = defaultdict(list)
        for agent in await self._all_agents():
            by_sandbox[agent.sandbox].append(agent)
        present = await asyncio.to_thread(self._layout.present)
        return [self._observation(sandbox, by_sandbox[sandbox]) for sandbox in sorted({*present, *by_sandbox})]

    @override
    async def place(self, sandbox: SandboxId, incarnation: IncarnationId) -> CliPlace:
        files = self._layout.sandbox(sandbox)
        run = files.run(incarnation)
        ready = run.read_ready()
        if ready is None:
            raise UnavailableError(f"Sandbox {sandbox} is not running.", sandbox=sandbox, incarnation=incarnation)
        return CliPlace(
            node=str(self._cli.node),
            entry=str(self._cli.entry),
            home=str(files.home),
            workspace=str(files.workspace),
            settings=str(run.settings),
            model_endpoint=f"http://127.0.0.1:{ready.model_port}",
            path=f"{self._cli.node.parent}:{CLEAN_PATH}",
        )

    def _remember(self, incarnation: IncarnationId, *, start: float, agent: float) -> None:
        steps = (
            StartStep(name=StartStepName.START, duration=timedelta(seconds=start)),
            StartStep(name=StartStepName.AGENT, duration=timedelta(seconds=agent)),
        )
        self._reports[incarnation] = StartReport(path=StartPath.PROCESS, steps=steps)
        if len(self._reports) > REMEMBERED_REPORTS:
            self._reports.popitem(last=False)

    async def _all_agents(self) -> Sequence[AgentProcess]:
        self._launcher.reap()
        return await asyncio.to_thread(processes.find_agents, self._layout)

    async def _agents(self, sandbox: SandboxId) -> Sequence[AgentProcess]:
        return [agent for agent in await self._all_agents() if agent.sandbox == sandbox]

    def _observation(self, sandbox: SandboxId, agents: Sequence[AgentProcess]) -> Observation:
        files = self._layout.sandbox(sandbox)
        return Observation(
            sandbox=sandbox,
            present=files.present,
            running=[
                RunningIncarnation(
                    incarnation=agent.incarnation,
                    endpoint=endpoint_of(agent.incarnation, files.run(agent.incarnation), agent.pid),
                )
                for agent in agents
            ],
        )

    async def _end(self, agent: AgentProcess, *, grace: timedelta) -> None:
        """End an agent with its tree: ask it, then tell it, then kill. Each step has its own bound."""
        files = self._layout.sandbox(agent.sandbox)
        endpoint = endpoint_of(agent.incarnation, files.run(agent.incarnation), agent.pid)
        if endpoint is not None:
            try:
                async with visit(self._connector, endpoint) as reached:
                    await reached.shutdown(grace=grace, timeout=grace + timedelta(seconds=self._exit_seconds))
            except SandboxdError as error:
                log.warning("backend.shutdown_refused", sandbox=agent.sandbox, error=error.message)
            if await self._gone(agent, self._exit_seconds):
                return
        processes.signal_agent(agent, signal.SIGTERM)
        if await self._gone(agent, grace.total_seconds() + self._exit_seconds):
            return
        log.warning("backend.agent_killed", sandbox=agent.sandbox, incarnation=agent.incarnation)
        await asyncio.to_thread(processes.kill_tree, agent, seconds=KILL_SECONDS)
        if processes.is_alive(agent):
            raise DeadlineError(f"The agent of sandbox {agent.sandbox} cannot be ended.", sandbox=agent.sandbox)

    async def _gone(self, agent: AgentProcess, seconds: float) -> bool:
        deadline = self._clock.monotonic() + seconds
        while processes.is_alive(agent):
            if self._clock.monotonic() >= deadline:
                return False
            await asyncio.sleep(processes.POLL_SECONDS)
            self._launcher.reap()
        return True

    async def _clean(self, sandbox: SandboxId) -> None:
        home = self._layout.sandbox(sandbox).home
        left = await asyncio.to_thread(processes.kill_marked, home, seconds=KILL_SECONDS)
        if left:
            log.warning("backend.leftovers_killed", sandbox=sandbox, processes=left)

    @asynccontextmanager
    async def _locked(self, sandbox: SandboxId, deadline: float) -> AsyncIterator[None]:
        """Keep others off the sandbox: tasks of this process, and other services on the same directory."""
        async with self._locks[sandbox]:
            lock = self._layout.sandbox(sandbox).lock
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                while not _try_lock(descriptor):
                    if self._clock.monotonic() >= deadline:
                        raise DeadlineError(
                            f"Another service is working on sandbox {sandbox}. Try again.", sandbox=sandbox
                        )
                    await asyncio.sleep(LOCK_POLL_SECONDS)
                yield
            finally:
                os.close(descriptor)


async def _on_disk(sandbox: SandboxId, work: Callable[[], object]) -> None:
    try:
        await asyncio.to_thread(work)
    except OSError as error:
        text = f"The files of sandbox {sandbox} cannot be worked on: {error.strerror or error} ({error.filename})."
        raise UnavailableError(text, sandbox=sandbox) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
