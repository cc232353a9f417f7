"""Which images backup sets name: a restore starts from them, so the care of kept images deletes none of these."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from typing_extensions import override

from sandboxd.manager.image_care_ports import ImageUses
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.errors import DeadlineError

PAGE: Final = 500


class BackupImageUses(ImageUses):
    """Asks the rows."""

    def __init__(self, units: UnitsOfWork, *, page: int = PAGE) -> None:
        self._units = units
        self._page = page

    @property
    @override
    def place(self) -> str:
        return "the backup sets"

    @override
    async def named(self, *, timeout: timedelta) -> Mapping[str, str]:
        named: dict[str, str] = {}
        after = ""
        try:
            async with asyncio.timeout(timeout.total_seconds()), self._units.begin() as work:
                while page := await work.backup_sets.pinned(limit=self._page, after=after):
                    for image, backup in page:
                        named.setdefault(image.rpartition("@")[2], f"backup {backup}")
                    after = page[-1][0]
        except TimeoutError as error:
            raise DeadlineError("The rows did not tell in time which images the backup sets name.") from error
        return named
