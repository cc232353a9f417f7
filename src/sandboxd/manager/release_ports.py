"""What the release of a terminated sandbox's volumes needs of the world: where they are kept, and that they go.

Contract suite: `tests/contract/test_kept_volumes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from sandboxd.model.ids import SandboxId


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptVolume:
    """A volume that a removed sandbox has left."""

    name: str
    """Where it is, for people."""
    identity: str
    """Of this very one: what is made in its place later has another."""
    size_bytes: int | None = None
    """How much room it takes; None where nobody knows."""
    hindrance: str = ""
    """Why its content would stay if it were released, and what to do; empty where nothing is in the way."""


class KeptVolumes(Protocol):
    """Finds and releases what removed sandboxes have left.

    Every method raises:
        UnavailableError: The world does not answer now.
        DeadlineError: It did not come about within `timeout`; it may still.
    """

    async def find(self, sandbox: SandboxId, *, timeout: timedelta) -> Sequence[KeptVolume]:
        """Return what there is of a removed sandbox's volumes; nothing where it is in its place."""
        ...

    async def release(self, sandbox: SandboxId, volumes: Sequence[KeptVolume], *, timeout: timedelta) -> None:
        """Destroy these very volumes, and return when nothing of them is there any more.

        One that is gone, or in whose place there is another one, is success: of that nothing is touched.

        Raises:
            VolumesStayError: The content of one would stay.
        """
        ...
