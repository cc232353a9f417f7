"""What repositories of backups have, for whoever compares it with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from sandboxd.model.ids import ClientId
from sandboxd.volumes.ports import TreeSnapshot


class SnapshotListing(Protocol):
    """Lists what repositories of backups have. Of the cluster's nobody does yet: each listing would be a pod."""

    async def snapshots(self, client: ClientId, *, timeout: timedelta) -> Sequence[TreeSnapshot]:
        """Every snapshot in a client's repository; none where there is no repository. Raises as `BackupRepository`."""
        ...
