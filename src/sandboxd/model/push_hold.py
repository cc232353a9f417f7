"""A hold on pushes: for so long nothing is written to the registry, as while its garbage is collected.

One holds at a time, until they release it or its time is over: whoever holds may die.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sandboxd.model.errors import ConflictError, UnavailableError

SHORTEST_HOLD: Final = timedelta(minutes=1)
LONGEST_HOLD: Final = timedelta(hours=6)
"""From its last renewal on."""
RETRY_AFTER: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushHold:
    """One hold, or what is left of one that nobody has released."""

    holder: str
    """Who holds, a name of their choice."""
    since_time: datetime
    until_time: datetime
    held_time: datetime | None = None
    """When the last push before it had ended; None: some go on, and none begins."""
    running: bool = True
    """False where its time is over, and nobody has released it: whoever held may have died."""


class PushesHeldError(UnavailableError):
    """Nothing may be written to the registry now; it is kept and written later, or asked for again."""

    reason = "PUSHES_HELD"

    def __init__(self, hold: PushHold) -> None:
        until = hold.until_time.isoformat(timespec="seconds")
        super().__init__(
            f"Pushes are held by {hold.holder} until {until} at the latest, as while garbage is collected.",
            holder=hold.holder,
            until=until,
            retry_after=RETRY_AFTER,
        )


class HoldTakenError(ConflictError):
    """Somebody else holds pushes."""

    reason = "HOLD_TAKEN"

    def __init__(self, hold: PushHold) -> None:
        until = hold.until_time.isoformat(timespec="seconds")
        super().__init__(
            f"Pushes are held by {hold.holder} until {until} at the latest. One holds at a time: wait for its end, or "
            "release it by its holder's name.",
            holder=hold.holder,
            until=until,
        )


class HoldLostError(ConflictError):
    """The hold was released, or its time ran out, while pushes in flight were waited for."""

    reason = "HOLD_LOST"
