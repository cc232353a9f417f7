"""Passes of whoever has a duty: one that fails or breaks ends none that follow, and who has it not makes none."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from typing_extensions import override

from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.manager.on_duty import SHORTEST_LEASE, pass_on_duty
from sandboxd.model.errors import UnavailableError

SOON = timedelta(milliseconds=1)


class FakeDuties(Duties):
    def __init__(self, *epochs: int | None) -> None:
        self.epochs = list(epochs)
        self.leases: list[timedelta] = []

    @override
    async def take(self, duty: str, *, lease: timedelta) -> int | None:
        self.leases.append(lease)
        return self.epochs.pop(0) if self.epochs else 1

    @override
    async def done(self, duty: str) -> None:
        raise AssertionError("nobody asked for that")


async def test_a_pass_that_fails_or_breaks_is_followed_by_others() -> None:
    passes, enough = 0, asyncio.Event()

    async def once() -> None:
        nonlocal passes
        passes += 1
        if passes == 1:
            raise UnavailableError("away")
        if passes == 2:
            raise ZeroDivisionError
        enough.set()

    running = asyncio.create_task(pass_on_duty(FakeDuties(), "d", once, pause=SOON, name="d.pass"))
    await asyncio.wait_for(enough.wait(), timeout=10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_who_has_not_the_duty_makes_no_pass_and_says_so() -> None:
    told, duties = list[str](), FakeDuties(None, 1)
    enough = asyncio.Event()

    async def once() -> None:
        told.append("pass")
        enough.set()

    running = asyncio.create_task(
        pass_on_duty(duties, "d", once, pause=SOON, name="d.pass", off_duty=lambda: told.append("off"))
    )
    await asyncio.wait_for(enough.wait(), timeout=10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert told[:2] == ["off", "pass"]
    assert set(duties.leases) == {SHORTEST_LEASE}


async def test_without_a_pause_there_is_nothing_to_do() -> None:
    async def once() -> None:
        raise AssertionError("no pass was asked for")

    await asyncio.wait_for(pass_on_duty(FakeDuties(), "d", once, pause=timedelta(0), name="d.pass"), timeout=10)
