"""Where sandboxes are placed, as the manager sees it: one port for every backend.

Contract suite: `tests/contract/test_backend.py`; it is what these docstrings mean where they are unclear. The agent
itself is reached through `stream.agent_port`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.sandbox import AgentEndpoint, Resources, Tier
from sandboxd.model.startup import StartReport
from sandboxd.stream.ports import CliPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What a backend must know to place a sandbox."""

    sandbox: SandboxId
    client: ClientId
    freelancer: FreelancerId
    resources: Resources
    tier: Tier = Tier.BASIC
    """The name of these resources."""
    pool: str = ""
    """The pool that it is started for; empty for a sandbox of somebody's."""
    recipe: str = ""
    """The backend's own word for what it is made from, where it is started for a pool."""
    image: str = ""
    """The image that it starts from, `registry/repository@sha256:…`; empty for the backend's base. Only backends that
    commit know others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningIncarnation:
    """An incarnation whose agent process is there. Whether it answers is another question."""

    incarnation: IncarnationId
    endpoint: AgentEndpoint | None
    """None until it is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a backend finds of one sandbox."""

    sandbox: SandboxId
    present: bool
    """True while its files are in their place; False before the first start and after `remove`."""
    tier: Tier | None = None
    """Whose resources it was asked to have; None where the backend does not keep that."""
    shrunk: bool | None = None
    """Whether it was asked to take as little as it can, see `Backend.shrink`; None where the backend knows no such."""
    running: Sequence[RunningIncarnation] = ()
    """Normally none or one; more are leftovers of a crash."""

    def find(self, incarnation: IncarnationId) -> RunningIncarnation | None:
        """The running incarnation of this id, or None."""
        return next((life for life in self.running if life.incarnation == incarnation), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendDescription:
    """What a backend is."""

    name: str
    """`local`, later `kubernetes` or `docker`."""
    isolates: bool
    """True when sandboxes cannot reach each other, nor the machine."""
    keeps_root: bool = False
    """True when a stop loses nothing of a sandbox's root file system."""
    warning: str = ""
    """What operators must be told at start; empty where there is nothing."""
    recipe: str = ""
    """What a sandbox would be made from now, in the backend's own words: members of pools made from another are
    replaced. Empty while the backend does not know: pools make nothing then, and replace nothing for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesSize:
    """How much there is of files."""

    files: int = 0
    """Files, links and the like; directories are not counted."""
    size_bytes: int = 0
    """Their lengths, added up."""


Told = Callable[[], Awaitable[None]]
"""Called with a piece of news."""


async def untold() -> None:
    """Nobody wants to know."""


class Backend(Protocol):
    """Places sandboxes. Every method is safe to repeat, and what it names is derived from ids.

    Raises (every method):
        UnavailableError: The world does not do it now; the message says what to look at.
        DeadlineError: It did not come about within `timeout`; it may still.
    """

    def describe(self) -> BackendDescription:
        """What this backend is and promises."""
        ...

    async def start(
        self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta, pulling: Told = untold
    ) -> AgentEndpoint:
        """Make the directories where they are absent, start the agent of that incarnation, wait until it answers.

        An incarnation that runs is answered as it is. Other incarnations of the sandbox are ended first: a sandbox
        never has two.

        Args:
            spec: What is started.
            incarnation: Which life of it.
            timeout: For all of it. While an image is really being fetched or unpacked for it a backend waits longer,
                up to a bound of its own.
            pulling: Called once, where it waits for that.

        Raises:
            ImageBrokenError: The spec's image is not in its registry, or does not boot; the base would.
        """
        ...

    async def adopt(self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        """Write on what runs whose it is from now on: it was started for a pool, and a freelancer has claimed it.

        Nothing is started, stopped or moved. Absent is success, and so is another incarnation.
        """
        ...

    def startup(self, incarnation: IncarnationId) -> StartReport | None:
        """How an incarnation came up that this very service has started; None where that is not known."""
        ...

    async def stop(
        self, sandbox: SandboxId, incarnation: IncarnationId, *, grace: timedelta, timeout: timedelta
    ) -> None:
        """End the incarnation with all its processes and keep the files. Absent is success."""
        ...

    async def resize(self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        """Give a sandbox that runs the resources of the spec: in place where the world can, else at its next start.

        Volumes grow where the world can, and never shrink. What does not run is success: its next start takes the spec.
        """
        ...

    async def shrink(self, sandbox: SandboxId, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        """Give back what a frozen sandbox does not need, in place: its processes, memory and limits stay.

        Does not wait until it has happened. Absent is success, and so are another incarnation and one that is stopped.
        """
        ...

    async def grow(self, sandbox: SandboxId, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        """Ask back what `shrink` gave; the world may need a while for it, in which the sandbox works. Else as that."""
        ...

    async def remove(self, sandbox: SandboxId, *, timeout: timedelta) -> str:
        """End whatever runs, and take the sandbox from its place; answers where its files were kept, for people.

        Nothing is destroyed while there are no backups. Absent is success and answers the same as the first time, or
        nothing where there never was anything.
        """
        ...

    async def measure(self, sandbox: SandboxId, *, timeout: timedelta) -> FilesSize:
        """How much there is of a sandbox's files, in its place or where it is kept. Absent is nothing."""
        ...

    async def erase(self, sandbox: SandboxId, *, timeout: timedelta) -> None:
        """End whatever runs and destroy the sandbox's files, also kept ones, for good. Absent is success.

        For the deletion of a client or a freelancer, and for members of pools that nobody ever used: everything else
        keeps files.
        """
        ...

    async def observe(self, sandbox: SandboxId) -> Observation:
        """What is there of one sandbox."""
        ...

    async def list(self) -> Sequence[Observation]:
        """What is there of all sandboxes."""
        ...

    async def place(self, sandbox: SandboxId, incarnation: IncarnationId) -> CliPlace:
        """Where the CLI finds its things in a running incarnation.

        Raises:
            UnavailableError: The incarnation does not run.
        """
        ...
