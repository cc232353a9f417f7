"""What the sandbox manager needs from outside to know the packages of sandboxes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Protocol

from sandboxd.model.packages import InstalledPackages, PackageNews
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
