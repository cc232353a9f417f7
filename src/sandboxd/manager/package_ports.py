"""What the sandbox manager needs from outside to know the packages of sandboxes.

Contract suite of the repository: `tests/contract/test_package_records.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from sandboxd.model.ids import IncarnationId, SandboxId, SessionId
from sandboxd.model.package_history import KeptChange, PackageRecord, Requester
from sandboxd.model.packages import (
    InstalledPackages,
    PackageChangeKind,
    PackageManager,
    PackageNews,
    PackagePlace,
)
from sandboxd.model.processes import ProcessId
from sandboxd.model.sandbox import AgentEndpoint


class PackageSource(Protocol):
    """Where packages are seen: the agents.

    Raises (every method):
        AgentUnavailableError: The agent does not answer, or was lost.
        NotImplementedYetError: It is older than this.
    """

    async def list(self, endpoint: AgentEndpoint, *, timeout: timedelta) -> InstalledPackages:
        """Look now; while something is being installed the answer waits until it stands still."""
        ...

    def watch(self, endpoint: AgentEndpoint, *, after: int) -> AsyncGenerator[PackageNews, None]:
        """Stream the kept changes after a sequence number, then what is installed, then each change as it comes.

        Close the iterator (`aclosing`) to stop. An agent keeps a bounded number of changes: whether some are missing is
        told by their sequence numbers, and what is installed is whole in any case.

        Args:
            endpoint: The agent of one incarnation; sequence numbers are of that incarnation alone.
            after: The last change that the caller has; 0 for none.
        """
        ...

    async def has_terminal(self, endpoint: AgentEndpoint, process: ProcessId, *, timeout: timedelta) -> bool:
        """Tell whether a started process is at a terminal; False where it is not known any more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeSelection:
    """Which changes are wanted: all conditions must hold."""

    manager: PackageManager | None = None
    kind: PackageChangeKind | None = None
    place: PackagePlace | None = None
    requester: Requester | None = None
    unsaved: bool = False
    """Only of the root file system, and in no commit."""
    after_number: int = 0
    """Only later ones than this."""
    since: datetime | None = None
    """Only those that became known then or later."""

    def takes(self, kept: KeptChange) -> bool:
        """Tell whether a change is wanted."""
        change = kept.change
        return (
            self.manager in (None, change.package.key.manager)
            and self.kind in (None, change.kind)
            and self.place in (None, change.package.place)
            and self.requester in (None, kept.asked.requester)
            and not (self.unsaved and kept.saved)
            and kept.number > self.after_number
            and (self.since is None or kept.kept_time >= self.since)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A running incarnation whose packages a replica watches."""

    sandbox: SandboxId
    incarnation: IncarnationId
    endpoint: AgentEndpoint
    after: int
    """The agent's last number that was kept."""


class PackageRepository(Protocol):
    """Records and histories of packages, in a unit of work."""

    async def hold(self, sandbox: SandboxId, incarnation: IncarnationId) -> PackageRecord:
        """The record of a sandbox as it is, locked with the sandbox's row; made for this incarnation if there is none.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
        """
        ...

    async def get(self, sandbox: SandboxId) -> PackageRecord | None:
        """The record, or None where nothing is known."""
        ...

    async def save(self, record: PackageRecord, changes: Sequence[KeptChange]) -> None:
        """Write a record that is held, add to its history, and show on the sandbox what is unsaved.

        Nobody else writes that: `SandboxRepository.save` leaves it alone. The owner is left as it is. Of the history
        the newest `MAX_CHANGES` stay.
        """
        ...

    async def mark_saved(
        self, sandbox: SandboxId, incarnation: IncarnationId, *, up_to: int, kept_by: datetime
    ) -> None:
        """Note that a commit has the changes of a life that the agent numbered up to so much, or known by a moment."""
        ...

    async def changes(
        self, sandbox: SandboxId, where: ChangeSelection, *, limit: int, falling: bool = False, from_number: int = 0
    ) -> Sequence[KeptChange]:
        """Changes by number, rising or falling, at most so many.

        Args:
            sandbox: Whose.
            where: Which.
            limit: At most so many.
            falling: The newest first.
            from_number: Begin beyond this one in the order asked for; 0 is the beginning.
        """
        ...

    async def numbers(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, int]:
        """The number of the last change of each; what has none is left out."""
        ...

    async def claim(self, *, replica: str, limit: int, among: Collection[SandboxId] | None = None) -> Sequence[Watched]:
        """Make a replica the owner of running sandboxes that no living one watches, at most so many; answers those.

        Only sandboxes that are ACTIVE: in a frozen one nothing is installed.
        """
        ...

    async def owned(self, *, replica: str, among: Collection[SandboxId] | None = None) -> Sequence[Watched]:
        """What a replica watches that is still ACTIVE, each with its present incarnation."""
        ...

    async def release(self, sandboxes: Collection[SandboxId], *, replica: str) -> None:
        """Leave sandboxes to whoever wants them."""
        ...

    async def session_of(
        self, sandbox: SandboxId, incarnation: IncarnationId, process: ProcessId, *, since: datetime, until: datetime
    ) -> tuple[bool, SessionId | None]:
        """Tell whether a process is the sandbox's CLI, and whose turn it had in a span, if that was one session's."""
        ...
