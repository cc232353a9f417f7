"""Where time and new ids come from, as ports: rules and use cases get them injected, so that tests own them."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The time."""

    def now(self) -> datetime:
        """The moment, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back, for deadlines."""
        ...


class IdSource(Protocol):
    """New ids."""

    def new(self, prefix: str) -> str:
        """A new id of that kind, as `model.ids.make_id` builds it."""
        ...
