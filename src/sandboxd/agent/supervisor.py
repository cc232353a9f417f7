"""The processes of this incarnation: starting, finding, signalling, and ending all of them.

Nothing here knows gRPC. Every process that runs in the sandbox descends from the agent, so "all" means all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from sandboxd.agent import proctree
from sandboxd.agent.clock import now
from sandboxd.agent.config import AgentConfig
from sandboxd.agent.freezer import Freezer
from sandboxd.agent.launch import DEFAULT_PATH, launch
from sandboxd.agent.process import ManagedProcess
from sandboxd.agent.proctree import INCARNATION_MARKER, PROCESS_MARKER, Entry
from sandboxd.agent.reaper import Reaper
from sandboxd.agent.user import User
from sandboxd.model.errors import InvalidRequestError
from sandboxd.model.packages import GEM_HOME, NPM_PREFIX, search_path
from sandboxd.model.processes import ProcessId, ProcessSpec, ShutdownResult, SignalScope, Spool, SpoolPolicy
from sandboxd.stream.agent_port import (
    AgentFrozenError,
    AgentStoppingError,
    NoTerminalError,
    ProcessExitedError,
    ProcessNotFoundError,
    ProcessRunningError,
    ProcessSpecDiffersError,
    TooManyProcessesError,
)

MIN_SPOOL_BYTES = 4096
MAX_SPOOL_BYTES = 1 << 30
STDOUT_SPOOL_BYTES = 64 << 20
STDERR_SPOOL_BYTES = 1 << 20
TERMINAL_SPOOL_BYTES = 1 << 20
LOOK_SECONDS = 0.02
"""Pause between two looks at what still runs during a shutdown."""
KILL_SECONDS = 5.0
"""How long killed processes may take to go away. One that waits inside the kernel cannot be waited for for ever."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

log = logging.getLogger(__name__)


class Supervisor:
    """Runs processes."""

    def __init__(self, *, config: AgentConfig, reaper: Reaper, freezer: Freezer, user: User | None = None) -> None:
        self._config = config
        self._user = user
        self._reaper = reaper
        self._freezer = freezer
        self._processes: dict[ProcessId, ManagedProcess] = {}
        self._shutdown: asyncio.Task[ShutdownResult] | None = None
        self.last_start_time: datetime | None = None

    @property
    def stopping(self) -> bool:
        """True from the beginning of the shutdown."""
        return self._shutdown is not None

    @property
    def processes(self) -> list[ManagedProcess]:
        """Every process that was started and not removed, oldest first."""
        return list(self._processes.values())

    def start(self, process_id: ProcessId, asked: ProcessSpec) -> tuple[ManagedProcess, bool]:
        """Start a process, or find the one of this id and specification.

        Returns:
            The process, and whether it is new.

        Raises:
            InvalidRequestError: The id or the specification breaks a rule.
            ProcessSpecDiffersError: The id is taken by another specification.
            ProcessStartError: It cannot be run.
            TooManyProcessesError: No more are kept.
            AgentFrozenError: The sandbox is frozen.
            AgentStoppingError: The agent is ending.
        """
        if _ID.fullmatch(process_id) is None:
            raise InvalidRequestError(
                "A process id has 1 to 128 characters of a-z, A-Z, 0-9, '-', '_' and '.'.", process=process_id
            )
        present = self._processes.get(process_id)
        if present is not None:
            if present.asked != asked:
                raise ProcessSpecDiffersError(
                    f"Process {process_id} exists with another specification. Use a new id.", process=process_id
                )
            return present, False
        if self.stopping:
            raise AgentStoppingError("The agent is ending and starts nothing more.")
        if self._freezer.frozen:
            raise AgentFrozenError("The sandbox is frozen. Thaw it before starting a process.")
        if len(self._processes) >= self._config.max_processes:
            raise TooManyProcessesError(
                f"{self._config.max_processes} processes are kept. Remove exited ones first.",
                max_processes=str(self._config.max_processes),
            )
        spec = self._complete(asked)
        environment = self._environment(process_id, spec)
        launched = launch(spec, directory=spec.working_directory, environment=environment, user=self._user)
        process = ManagedProcess(
            process_id=process_id, asked=asked, spec=spec, launched=launched, spools=self._config.spool_directory
        )
        self._reaper.expect(process.pid, process.exited)
        self._processes[process_id] = process
        self.last_start_time = now()
        log.info("process.started", extra={"fields": {"process": process_id, "pid": process.pid}})
        return process, True

    def get(self, process_id: ProcessId) -> ManagedProcess:
        """Find a process.

        Raises:
            ProcessNotFoundError: There is none of this id.
        """
        process = self._processes.get(process_id)
        if process is None:
            raise ProcessNotFoundError(f"Process {process_id} does not exist.", process=process_id)
        return process

    def remove(self, process_id: ProcessId) -> None:
        """Forget an exited process; absent is success.

        Raises:
            ProcessRunningError: It still runs.
        """
        process = self._processes.get(process_id)
        if process is None:
            return
        if process.exit is None:
            raise ProcessRunningError(f"Process {process_id} still runs. End it first.", process=process_id)
        process.close()
        del self._processes[process_id]

    def signal(self, process_id: ProcessId, number: int, scope: SignalScope) -> int:
        """Send a signal, and return how many processes were there to receive it.

        Raises:
            ProcessExitedError: The leader of the group has exited.
            NoTerminalError: There is no terminal whose foreground could be meant.
        """
        process = self.get(process_id)
        if not 1 <= number < signal.NSIG:
            raise InvalidRequestError(f"There is no signal {number}.", signal=str(number))
        entries = self.trees().get(process_id, [])
        if scope is SignalScope.TREE:
            return proctree.send(entries, number)
        if process.exit is not None:
            raise ProcessExitedError(f"Process {process_id} has exited.", process=process_id)
        group = process.pid if scope is SignalScope.GROUP else foreground_group(process)
        # One call for the whole group, so that no member sees another die first. The leader's number cannot be
        # another's: it is our child and was not reaped, and a foreground group is checked to be in its session.
        members = [entry for entry in entries if entry.group == group and entry.session == process.pid]
        if not members and scope is SignalScope.FOREGROUND:
            return 0
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return 0
        return max(len(members), 1)

    def trees(self, entries: Mapping[int, Entry] | None = None) -> dict[ProcessId, list[Entry]]:
        """Return the live processes of each started one, parents first.

        Args:
            entries: The agent's descendants, where they were just looked at.
        """
        entries = proctree.descendants(os.getpid()) if entries is None else entries
        leaders = {process.pid: process.process_id for process in self._processes.values()}
        owners = proctree.owners(entries, leaders, user=self._user)
        trees: dict[ProcessId, list[Entry]] = {}
        for pid, owner in owners.items():
            if entries[pid].live:
                trees.setdefault(owner, []).append(entries[pid])
        return trees

    async def shutdown(self, *, grace: timedelta) -> ShutdownResult:
        """End everything: thaw, TERM, grace, KILL. Later calls wait for the first."""
        if self._shutdown is None:
            self._shutdown = asyncio.create_task(self._end_all(grace), name="agent-shutdown")
        return await asyncio.shield(self._shutdown)

    async def _end_all(self, grace: timedelta) -> ShutdownResult:
        await self._freezer.thaw()
        before = self._live()
        proctree.send(before, signal.SIGTERM)
        # A job that was stopped in a shell would sleep through the TERM.
        proctree.send([entry for entry in before if entry.stopped], signal.SIGCONT)
        # An interactive shell ignores TERM; its terminal going away is what ends it.
        shells = {process.pid for process in self._processes.values() if process.terminal >= 0}
        proctree.send([entry for entry in before if entry.pid in shells], signal.SIGHUP)
        await self._until_gone(grace.total_seconds())
        left = self._live()
        killed = len(left)
        loop = asyncio.get_running_loop()
        end = loop.time() + KILL_SECONDS
        while left and loop.time() < end:
            proctree.send(left, signal.SIGKILL)
            await asyncio.sleep(LOOK_SECONDS)
            left = self._live()
        if left:
            log.error("shutdown.incomplete", extra={"fields": {"processes": len(left)}})
        return ShutdownResult(terminated_processes=max(len(before) - killed, 0), killed_processes=killed)

    async def _until_gone(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._live() and loop.time() < end:
            await asyncio.sleep(LOOK_SECONDS)

    def _live(self) -> list[Entry]:
        return [entry for entry in proctree.descendants(os.getpid()).values() if entry.live]

    def _complete(self, asked: ProcessSpec) -> ProcessSpec:
        if not asked.argv or not asked.argv[0]:
            raise InvalidRequestError("A process needs a program: argv is empty.")
        if any("\0" in word for word in (*asked.argv, *asked.environment, *asked.environment.values())):
            raise InvalidRequestError("Arguments and environment must not hold a zero byte.")
        if any(not name or "=" in name for name in asked.environment):
            raise InvalidRequestError("The name of an environment variable is not empty and has no '='.")
        directory = asked.working_directory or str(self._config.workspace)
        if not directory.startswith("/") or "\0" in directory:
            raise InvalidRequestError("The working directory must be an absolute path.", directory=directory)
        if asked.terminal is not None and not (
            1 <= asked.terminal.rows <= 10_000 and 1 <= asked.terminal.columns <= 10_000
        ):
            raise InvalidRequestError("A terminal has 1 to 10000 rows and columns.")
        terminal = asked.terminal is not None
        return replace(
            asked,
            working_directory=directory,
            merge_stderr=asked.merge_stderr or terminal,
            stdout_spool=_complete_spool(
                asked.stdout_spool,
                size=TERMINAL_SPOOL_BYTES if terminal else STDOUT_SPOOL_BYTES,
                policy=SpoolPolicy.DROP_OLDEST if terminal else SpoolPolicy.BLOCK,
            ),
            stderr_spool=_complete_spool(asked.stderr_spool, size=STDERR_SPOOL_BYTES, policy=SpoolPolicy.DROP_OLDEST),
        )

    def _environment(self, process_id: ProcessId, spec: ProcessSpec) -> dict[str, str]:
        account = {} if self._user is None else _account(self._user, home=str(self._config.home))
        return {
            "HOME": str(self._config.home),
            "PATH": DEFAULT_PATH,
            **account,
            "TERM": "xterm-256color" if spec.terminal is not None else "dumb",
            **spec.environment,
            INCARNATION_MARKER: self._config.incarnation,
            PROCESS_MARKER: process_id,
        }


def _account(user: User, *, home: str) -> dict[str, str]:
    """Return what a login gives: who one is, and programs that one has installed for oneself found first."""
    return {
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": user.shell,
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
        "PATH": search_path(home, f"{DEFAULT_PATH}:/opt/node/bin"),
        "NPM_CONFIG_PREFIX": f"{home}/{NPM_PREFIX}",
        "GEM_HOME": f"{home}/{GEM_HOME}",
    }


def foreground_group(process: ManagedProcess) -> int:
    """Return the foreground group of a process's terminal.

    Raises:
        NoTerminalError: It has none.
    """
    if process.terminal < 0:
        raise NoTerminalError(f"Process {process.process_id} has no terminal.", process=process.process_id)
    try:
        return os.tcgetpgrp(process.terminal)
    except OSError:  # it has hung up
        return 0


def _complete_spool(spool: Spool, *, size: int, policy: SpoolPolicy) -> Spool:
    wanted = spool.max_bytes or size
    if not MIN_SPOOL_BYTES <= wanted <= MAX_SPOOL_BYTES:
        raise InvalidRequestError(f"A spool has {MIN_SPOOL_BYTES} to {MAX_SPOOL_BYTES} bytes.", bytes=str(wanted))
    return Spool(max_bytes=wanted, policy=spool.policy or policy)
