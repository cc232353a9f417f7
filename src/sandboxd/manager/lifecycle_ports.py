"""What the sweep of idle sandboxes needs from outside: its looks in the database, the duty, what a stop would lose.

Contract suite of the looks: `tests/contract/test_looks.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from typing_extensions import override

from sandboxd.model.idleness import Reading
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.lifecycle import LifecycleOverrides, LifecycleStep
from sandboxd.model.sandbox import Sandbox, SandboxState

RESTING: Final = frozenset({SandboxState.ACTIVE, SandboxState.HIBERNATED, SandboxState.STOPPED, SandboxState.PAUSED})
"""States from which policy does something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A step that open streams were told of."""

    step: LifecycleStep
    time: datetime
    """It is not taken before."""
    since: datetime
    """Since when the sandbox was idle then: another moment makes it void."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the sweep keeps of one sandbox from look to look."""

    announced: Announced | None = None
    reading: Reading | None = None
    failures: int = 0
    """Attempts in a row that failed."""
    hindrance: str = ""
    """Why a step that is due is not taken, a constant word; empty where nothing hinders it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A sandbox to look at."""

    sandbox: Sandbox
    wishes: LifecycleOverrides
    """Of its client."""
    look: Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What one look came to."""

    sandbox: SandboxId
    version: int
    """Of the sandbox that was looked at: one that has changed meanwhile is looked at again at once."""
    look: Look
    look_time: datetime
    """When to look again."""
    dirty_since: datetime | None = None
    """Of the sandbox that was looked at: one in which something was installed meanwhile is looked at again at once."""
    changed: bool = True
    """False where the look is the one that is there: then only the time is written."""


class LookRepository(Protocol):
    """The looks, in a unit of work. Only sandboxes in the states of `RESTING` are candidates."""

    async def due(self, *, at: datetime, limit: int) -> Sequence[Candidate]:
        """Sandboxes whose time for a look has come, the longest overdue first. Every change of one asks for a look."""
        ...

    async def every(self, *, limit: int, after: SandboxId | None = None) -> Sequence[Candidate]:
        """All candidates, by id, after an id."""
        ...

    async def note(self, noted: Sequence[Noted]) -> None:
        """Write looks. A sandbox that somebody else holds or has changed is left out: it is looked at again."""
        ...

    async def find(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, Candidate]:
        """Those of the named sandboxes that are candidates."""
        ...

    async def hasten(self, client: ClientId, *, at: datetime) -> None:
        """Ask for a look at every sandbox of a client: its limits have changed."""
        ...


class Duties(Protocol):
    """Duties that one replica has at a time. Every method may raise DatabaseUnavailableError."""

    async def take(self, duty: str, *, lease: timedelta) -> int | None:
        """Have a duty, or keep it; answers its epoch, which grows with every change of hands. None: another has it.

        It is free where its holder is dead, or has not prolonged its lease.
        """
        ...

    async def done(self, duty: str) -> None:
        """Note that a duty was done to its end just now, by whomever."""
        ...


class Root(enum.Enum):
    """What a stop would lose of a sandbox's root file system."""

    CLEAN = "CLEAN"
    """Nothing."""
    DIRTY = "DIRTY"
    """What was installed or changed there."""
    COMMITTABLE = "COMMITTABLE"
    """What may have changed there, and what is committed before it goes."""
    UNKNOWN = "UNKNOWN"
    """Nobody can tell; policy takes it for dirty."""


class Dirtiness(Protocol):
    """Whether anything would be lost at a stop (ADR 0027)."""

    async def root_of(self, sandbox: Sandbox) -> Root:
        """Say it from what is known already: it is asked with every Get, and must not visit the sandbox."""
        ...


class BackendDirtiness(Dirtiness):
    """What the backend says of all its sandboxes, and what is known to be unsaved of one.

    That nothing is known to be unsaved proves nothing: a change deep in a directory is seen by no look, only by the
    walk of a commit. So it makes a sandbox dirty, and never clean.
    """

    def __init__(self, *, keeps_root: bool, commits: bool = False) -> None:
        self._keeps_root = keeps_root
        self._commits = commits

    @override
    async def root_of(self, sandbox: Sandbox) -> Root:
        if self._keeps_root:
            return Root.CLEAN
        if self._commits:
            return Root.COMMITTABLE
        return Root.UNKNOWN if sandbox.dirty_since is None else Root.DIRTY
