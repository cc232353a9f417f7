"""Tells a life that ended under its capture from whatever else is away, and says what is lost with it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sandboxd.manager.losses import Losses
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.commit_errors import CommitOvertakenError
from sandboxd.model.errors import AgentUnavailableError, UnavailableError
from sandboxd.model.image import Generation

LIFE_LOOKS: Final = 8
"""How often the backend is asked, after pauses, whether a life has ended whose agent went away under a capture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedLives:
    """Asked when a capture fails."""

    units: UnitsOfWork
    losses: Losses
    pause: timedelta
    """Between two looks: the backend knows of an end some seconds after the agent has gone."""

    async def require(self, generation: Generation, error: UnavailableError) -> None:
        """Return where the life goes on, as far as anybody can say; a loss is made official.

        Args:
            generation: What was to be made of the life.
            error: What the capture failed with.

        Raises:
            CommitOvertakenError: It has ended; the message says what is lost with it.
        """
        looks = LIFE_LOOKS if isinstance(error, AgentUnavailableError) else 1
        for look in range(looks):
            if look:
                await asyncio.sleep(self.pause.total_seconds())
            try:
                if await self.losses.check(generation.sandbox, generation.incarnation):
                    break
            except UnavailableError:  # nobody can say now; what failed first is the news
                return
        else:
            return
        async with self.units.begin() as work:
            sandbox = await work.sandboxes.get(generation.sandbox)
        told = f" {sandbox.state_reason}" if sandbox.incarnation == generation.incarnation else ""
        raise CommitOvertakenError(
            f"The life of sandbox {sandbox.id} that was to be committed has ended.{told}".rstrip(), sandbox=sandbox.id
        ) from error
