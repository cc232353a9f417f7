"""What holding pushes needs of the database: who holds, and which pushes are in flight, for all replicas alike.

Contract suite: `tests/contract/test_push_holds.py`. All times are the database's.
"""

from __future__ import annotations

from datetime import timedelta
from typing import NewType, Protocol

from sandboxd.model.push_hold import PushHold

PushId = NewType("PushId", str)


class PushHolds(Protocol):
    """The hold, and the pushes. Every method may raise DatabaseUnavailableError."""

    async def begin_push(self, push: PushId, *, lease: timedelta) -> None:
        """Note a push before its first write. It counts until it is ended, or `lease` after its last renewal.

        Raises:
            PushesHeldError: Pushes are held.
        """
        ...

    async def renew_push(self, push: PushId, *, lease: timedelta) -> bool:
        """Let a push count for `lease` from now on, and never shorter than before; False where it counts no more."""
        ...

    async def end_push(self, push: PushId, *, linger: timedelta) -> None:
        """Let a push count no more, or only as long as `linger` where what it began may still write."""
        ...

    async def in_flight(self) -> int:
        """How many pushes count."""
        ...

    async def claim(self, holder: str, claim: str, *, lease: timedelta) -> PushHold:
        """Hold for `lease`, so that no push begins; a hold of the same holder goes on, and never ends sooner by it.

        Args:
            holder: Who.
            claim: Of this call: what a later one of the same holder does is not taken back by this one.
            lease: From now on.

        Raises:
            HoldTakenError: Somebody else holds.
        """
        ...

    async def grant(self, holder: str, claim: str, *, span: timedelta) -> PushHold | None:
        """Hold for `span` from now on, if no push counts any more; None where some do.

        Raises:
            HoldLostError: The claim does not stand any more.
        """
        ...

    async def take_back(self, claim: str) -> None:
        """Undo a claim that was not granted."""
        ...

    async def release(self, holder: str) -> bool:
        """End a hold; False where nobody holds.

        Raises:
            HoldTakenError: Somebody else holds.
        """
        ...

    async def present(self) -> PushHold | None:
        """The hold, also one whose time is over and that nobody has released; None where there is none."""
        ...
