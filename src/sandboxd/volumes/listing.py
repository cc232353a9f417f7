"""What clients' backups have, for whoever compares it with the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol, runtime_checkable

from sandboxd.model.backup import BackupSetId
from sandboxd.model.ids import ClientId

STRAYS: Final = 60
"""Sets that one survey tells of: their names fit into what a kubelet passes on of a worker's last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StraySets:
    """What a client's repository has of sets that nobody named."""

    sizes: Mapping[BackupSetId, int]
    """Bytes of each, at most `STRAYS` of them."""
    more: int = 0
    """So many others there are."""


@runtime_checkable
class StrayListing(Protocol):
    """Lists what a client's backups have and nobody knows of."""

    async def strays(self, client: ClientId, known: Sequence[BackupSetId], *, timeout: timedelta) -> StraySets:
        """Say of which sets there are snapshots, but for those that are known. Raises as `BackupRepository`.

        A set that is taken while this is asked has its row before it has a snapshot.
        """
        ...
