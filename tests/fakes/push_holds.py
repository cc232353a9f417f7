"""The hold on pushes in memory, with a clock that a test moves."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from typing_extensions import override

from sandboxd.manager.push_hold_ports import PushHolds, PushId
from sandboxd.model.errors import DatabaseUnavailableError
from sandboxd.model.push_hold import HoldLostError, HoldTakenError, PushesHeldError, PushHold


class FakePushHolds(PushHolds):
    """One installation's."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 30, 12, tzinfo=UTC)
        self.pushes: dict[PushId, datetime] = {}
        self.down = False
        self._hold: PushHold | None = None
        self._claim = ""

    def _weather(self) -> None:
        if self.down:
            raise DatabaseUnavailableError("The database does not answer. Try again in a moment.")

    def _running(self) -> PushHold | None:
        return self._hold if self._hold is not None and self._hold.until_time > self.now else None

    @override
    async def begin_push(self, push: PushId, *, lease: timedelta) -> None:
        self._weather()
        if (hold := self._running()) is not None:
            raise PushesHeldError(hold)
        self.pushes[push] = self.now + lease

    @override
    async def renew_push(self, push: PushId, *, lease: timedelta) -> bool:
        self._weather()
        until = self.pushes.get(push, self.now)
        if until <= self.now:
            return False
        self.pushes[push] = max(until, self.now + lease)
        return True

    @override
    async def end_push(self, push: PushId, *, linger: timedelta) -> None:
        self._weather()
        if linger:
            self.pushes[push] = self.now + linger
        else:
            self.pushes.pop(push, None)

    @override
    async def in_flight(self) -> int:
        return sum(until > self.now for until in self.pushes.values())

    @override
    async def claim(self, holder: str, claim: str, *, lease: timedelta) -> PushHold:
        self._weather()
        running = self._running()
        if running is not None and running.holder != holder:
            raise HoldTakenError(running)
        until = self.now + lease
        if running is None:
            self._hold = PushHold(holder=holder, since_time=self.now, until_time=until)
        else:
            self._hold = replace(running, until_time=max(until, running.until_time))
        self._claim = claim
        return self._hold

    @override
    async def grant(self, holder: str, claim: str, *, span: timedelta) -> PushHold | None:
        running = self._running()
        if running is None or (running.holder, self._claim) != (holder, claim):
            raise HoldLostError(f"What {holder} was about to hold was released or taken over meanwhile.")
        if await self.in_flight():
            return None
        until = max(running.until_time, self.now + span) if running.held_time else self.now + span
        self._hold = replace(running, held_time=running.held_time or self.now, until_time=until)
        return self._hold

    @override
    async def take_back(self, claim: str) -> None:
        if self._hold is not None and self._claim == claim and self._hold.held_time is None:
            self._hold = None

    @override
    async def release(self, holder: str) -> bool:
        if self._hold is not None and self._hold.holder == holder:
            self._hold = None
            return True
        if (running := self._running()) is not None:
            raise HoldTakenError(running)
        return False

    @override
    async def present(self) -> PushHold | None:
        self._weather()
        return None if self._hold is None else replace(self._hold, running=self._running() is not None)
