"""Installs packages again in a sandbox that was started for it, by each manager's own program, through its agent.

What came of it is what the sandbox's databases say afterwards, not what exit codes do.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count, groupby
from typing import Final

import structlog

from sandboxd.manager.agents import visit
from sandboxd.manager.package_ports import PackageSource
from sandboxd.model.errors import DeadlineError
from sandboxd.model.legible import legible
from sandboxd.model.packages import InstalledPackages, Package, PackageManager, PackagePlace
from sandboxd.model.processes import (
    OutputChunk,
    OutputStream,
    ProcessId,
    ProcessSpec,
    SignalScope,
    Spool,
    SpoolPolicy,
)
from sandboxd.model.replay import install_command
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.model.sources import Clock
from sandboxd.stream.agent_port import Agent, AgentConnector, ProcessStartError

COMMAND_TIMEOUT: Final = timedelta(minutes=10)
"""Of one command; the whole list of a desktop takes five on a slow mirror."""
LIST_TIMEOUT: Final = timedelta(minutes=1)
TAIL_TIMEOUT: Final = timedelta(seconds=10)
TAIL_BYTES: Final = 8 << 10
"""Of what a command prints, its end is kept."""
SHOWN: Final = 300
"""Characters of that which a failure says."""
ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/cargo/bin:/usr/local/go/bin:"
    "/opt/node/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "APT_LISTCHANGES_FRONTEND": "none",
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "GOBIN": "/usr/local/bin",
}
"""Of root's commands: nothing of a freelancer's, so that what is installed goes to the root file system."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotInstalled:
    """A package that could not be installed."""

    package: Package
    why: str
    """The end of what its manager printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of it."""

    found: InstalledPackages
    """All that is installed afterwards, the base's own included."""
    failed: Sequence[NotInstalled] = ()
    otherwise: Sequence[tuple[Package, str]] = ()
    """Packages whose version could not be had, with the one that is installed instead."""


@dataclass(slots=True, kw_only=True)
class PackageReplay:
    """Replays lists of packages."""

    connector: AgentConnector
    source: PackageSource
    clock: Clock
    command_timeout: timedelta = field(default=COMMAND_TIMEOUT)

    async def replay(
        self, endpoint: AgentEndpoint, packages: Sequence[Package], *, timeout: timedelta, done: Callable[[int], None]
    ) -> Replayed:
        """Install packages, in their order.

        Args:
            endpoint: The agent of a sandbox that has nothing but a base.
            packages: Checked ones (`model.replay`), by manager.
            timeout: For all of them.
            done: Told how many were tried.

        Raises:
            UnavailableError: The agent was lost.
            DeadlineError: `timeout` is over.
        """
        deadline = self.clock.monotonic() + timeout.total_seconds()
        why: dict[tuple[PackageManager, str], str] = {}
        async with visit(self.connector, endpoint) as agent:
            run = _Commands(agent, self.clock, deadline=deadline, each=self.command_timeout)
            tried = 0
            for (manager, _), group in groupby(packages, key=_together):
                some = list(group)
                if manager is PackageManager.DPKG:
                    await run.run(["apt-get", "update", "--quiet"])
                why |= await _install(run, some)
                tried += len(some)
                done(tried)
        return await self._came_to(endpoint, packages, why)

    async def _came_to(
        self, endpoint: AgentEndpoint, packages: Sequence[Package], why: dict[tuple[PackageManager, str], str]
    ) -> Replayed:
        found = await self.source.list(endpoint, timeout=LIST_TIMEOUT)
        versions = {
            (one.key.manager, one.key.name): one.version for one in found.packages if one.place is PackagePlace.ROOT
        }
        names = [(one, (one.key.manager, one.key.name)) for one in packages]
        missing = "its manager said that it is installed, and it is not there"
        failed = [
            NotInstalled(package=one, why=why.get(name) or missing) for one, name in names if name not in versions
        ]
        return Replayed(
            found=found,
            failed=failed,
            otherwise=[
                (one, versions[name]) for one, name in names if name in versions and versions[name] != one.version
            ],
        )


def _together(package: Package) -> tuple[PackageManager, str]:
    """What goes into one command: of one manager, and where it takes a directory, of one directory."""
    manager = package.key.manager
    with_directory = manager in (PackageManager.NPM, PackageManager.CARGO)
    return manager, package.key.directory if with_directory else ""


async def _install(run: _Commands, packages: Sequence[Package]) -> dict[tuple[PackageManager, str], str]:
    """Install all at once, or else one after the other, each in its version or else in the newest; answers failures."""
    one_by_one = packages[0].key.manager is PackageManager.GO
    if not one_by_one and not await run.run(install_command(packages, pinned=True)):
        return {}
    why = {}
    for one in packages:
        if len(packages) == 1 and not one_by_one:
            pinned = "tried"
        else:
            pinned = await run.run(install_command([one], pinned=True))
        if pinned and (newest := await run.run(install_command([one], pinned=False))):
            why[one.key.manager, one.key.name] = newest
    return why


class _Commands:
    """Runs commands as root, one after the other."""

    def __init__(self, agent: Agent, clock: Clock, *, deadline: float, each: timedelta) -> None:
        self._agent = agent
        self._clock = clock
        self._deadline = deadline
        self._each = each
        self._numbers = count(1)

    async def run(self, command: Sequence[str]) -> str:
        """Run one to its end; answers why it failed, and nothing where it did not."""
        left = timedelta(seconds=self._deadline - self._clock.monotonic())
        if left <= timedelta(0):
            raise DeadlineError("The packages could not be installed again in the time that was given.")
        name = ProcessId(f"replay-{next(self._numbers)}")
        spool = Spool(max_bytes=TAIL_BYTES, policy=SpoolPolicy.DROP_OLDEST)
        words = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
        spec = ProcessSpec(
            argv=["sudo", "-n", "--", "/usr/bin/env", "-i", *words, *command],
            environment={"PATH": ENVIRONMENT["PATH"], "LANG": "C.UTF-8"},
            working_directory="/",
            stdout_spool=spool,
            merge_stderr=True,
        )
        try:
            await self._agent.start_process(name, spec)
        except ProcessStartError as error:
            return error.message
        try:
            ended = await self._agent.wait_process(name, timeout=min(left, self._each))
        except DeadlineError:
            await self._agent.signal_process(name, signal.SIGKILL, scope=SignalScope.TREE)
            if left <= self._each:
                raise
            return f"{command[0]} took longer than {self._each.total_seconds():.0f} s"
        text = await self._tail(name)
        code = ended.exit
        log.info("upgrade.command_ended", command=command[:3], exit=None if code is None else code.exit_code)
        if code is not None and not code.exit_code and not code.signal:
            return ""
        return legible(text, limit=SHOWN) or f"{command[0]} failed without a word"

    async def _tail(self, name: ProcessId) -> str:
        kept = b""
        with suppress(TimeoutError):  # something that it started may hold its output open
            async with (
                asyncio.timeout(TAIL_TIMEOUT.total_seconds()),
                aclosing(self._agent.attach(name, epoch=1, positions={OutputStream.STDOUT: 0})) as output,
            ):
                async for piece in output:
                    if isinstance(piece, OutputChunk):
                        kept = (kept + piece.data)[-TAIL_BYTES:]
        await self._agent.remove_process(name)
        return kept.decode("utf-8", "replace")
