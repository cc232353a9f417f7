"""What the manager needs of the rows of prices. Part of the unit of work (`manager/ports.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from sandboxd.model.pricing import Price


class PriceRepository(Protocol):
    """The price book, for those who change it. What reads it all the time has `monitor.ports.PriceBookStore`."""

    async def all(self, *, for_update: bool = False) -> Sequence[Price]:
        """All prices, ended ones too, by model, beginning and id.

        `for_update` lets nobody else change the book until the end of the unit of work. There are some hundred.
        """
        ...

    async def add(self, price: Price) -> None:
        """Insert a price; its id is new."""
        ...

    async def set_end(self, price: str, *, at: datetime) -> None:
        """Write when a price ends."""
        ...
