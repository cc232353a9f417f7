"""Holding pushes for somebody outside: nothing new begins, and who asked hears when what had begun has ended."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.push_hold_ports import PushHolds
from sandboxd.model.errors import DeadlineError, SandboxdError
from sandboxd.model.push_hold import PushHold
from sandboxd.model.sources import Clock

CLAIM_LEASE: Final = timedelta(seconds=30)
"""How long pushes stay held where who asks, or who answers, dies before the hold is granted."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushHolding:
    """Takes and gives back the hold."""

    holds: PushHolds
    clock: Clock
    pause: timedelta = timedelta(seconds=0.5)
    """Between looks at whether pushes in flight have ended."""

    async def hold(self, holder: str, *, span: timedelta, timeout: timedelta) -> PushHold:
        """Let no push begin, and answer when none is in flight; the same holder's next call renews it.

        Args:
            holder: Who.
            span: How long it holds, from the answer on, unless it is released or renewed.
            timeout: How long pushes in flight are waited for; then the hold is taken back.

        Raises:
            HoldTakenError: Somebody else holds.
            HoldLostError: Somebody has released it meanwhile.
            DeadlineError: Pushes in flight have not ended in time.
        """
        claim, end = uuid.uuid4().hex, self.clock.monotonic() + timeout.total_seconds()
        try:
            while True:
                await self.holds.claim(holder, claim, lease=CLAIM_LEASE)
                granted = await self.holds.grant(holder, claim, span=span)
                if granted is not None:
                    log.info("pushes.held", holder=holder, until=granted.until_time.isoformat())
                    return granted
                if self.clock.monotonic() >= end:
                    flying = await self.holds.in_flight()
                    raise DeadlineError(
                        f"{flying} pushes have not ended in time, so pushes are not held. Try again later, or wait "
                        "longer.",
                        pushes=str(flying),
                    )
                await asyncio.sleep(self.pause.total_seconds())
        except BaseException:
            await asyncio.shield(self._take_back(claim))
            raise

    async def release(self, holder: str) -> bool:
        """Let pushes begin again; False where nobody held them.

        Raises:
            HoldTakenError: Somebody else holds.
        """
        released = await self.holds.release(holder)
        log.info("pushes.released", holder=holder, held=released)
        return released

    async def _take_back(self, claim: str) -> None:
        try:
            await self.holds.take_back(claim)
        except SandboxdError as error:  # its lease ends
            log.warning("pushes.claim_not_taken_back", error=error.message)
