"""What resource accounting needs from the outside: the intervals. Implemented by `persistence`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sandboxd.model.metering import ResourceDimension, ResourceFilter, ResourceKind, ResourceSummary


class ResourceLedger(Protocol):
    """What sandboxes held. It is written in the transactions that change them."""

    async def summarise(
        self, where: ResourceFilter, *, kind: ResourceKind, by: Sequence[ResourceDimension], limit: int
    ) -> ResourceSummary:
        """Add intervals up by dimensions: at most `limit` sums, and the sum of all. An open one counts until now.

        Raises:
            DatabaseUnavailableError: The database does not answer.
        """
        ...
