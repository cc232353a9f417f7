"""When an open stream must end: what `Stay` looks at, and what it lets be."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from unittest.mock import Mock

import pytest
from typing_extensions import override

from sandboxd.api.grpc.ports import Standing
from sandboxd.api.grpc.rpc import Rpc
from sandboxd.api.grpc.stay import Stay
from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import DatabaseUnavailableError, ReplicaCutOffError
from sandboxd.model.ids import ClientId

SOON = timedelta(milliseconds=1)


class NobodyKnows(Standing):
    """The database is away: whether somebody is welcome cannot be told."""

    def __init__(self) -> None:
        self.looks = 0

    @override
    async def check(self, caller: Caller) -> None:
        self.looks += 1
        raise DatabaseUnavailableError("The database does not answer.")

    @override
    async def wait(self, caller: Caller, *, timeout: timedelta) -> None:
        await asyncio.sleep(timeout.total_seconds())


def a_call() -> Rpc:
    rpc = Rpc(method="sandboxd.v1.SandboxService/Stream", streaming=True, context=Mock(), metadata={}, request=None)
    rpc.checked_caller = Caller(client=ClientId("acme"), subject="platform", role=Role.PLATFORM)
    return rpc


async def test_a_database_that_is_away_ends_no_stream_before_the_replica_counts_as_cut_off() -> None:
    standing, cut_off = NobodyKnows(), False
    stay = Stay(standing=standing, grace=SOON, look_every=SOON, cut_off=lambda: cut_off)
    ending = asyncio.create_task(stay.end(a_call()))
    while standing.looks < 3:
        await asyncio.sleep(0.001)
    assert not ending.done()

    cut_off = True

    with pytest.raises(ReplicaCutOffError, match="Connect again"):
        async with asyncio.timeout(5):
            await ending
