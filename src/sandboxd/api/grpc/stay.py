"""How long a caller may stay on a stream: until its proof expired a grace ago, or it is not welcome any more."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import NoReturn

from typing_extensions import override

from sandboxd.api.grpc.ports import Standing
from sandboxd.api.grpc.rpc import Rpc
from sandboxd.model.accounts import Standings
from sandboxd.model.caller import Caller
from sandboxd.model.errors import ReplicaCutOffError, UnauthenticatedError, UnavailableError

Announce = Callable[[UnauthenticatedError, timedelta], Awaitable[None]]
"""Tells the caller that its proof has expired, and when its stream will end."""


class AccountStanding(Standing):
    """Welcomes whose client and freelancer may act."""

    def __init__(self, accounts: Standings) -> None:
        self._accounts = accounts

    @override
    async def check(self, caller: Caller) -> None:
        """Ask for the client, and for the freelancer where the caller is one."""
        await self._accounts.require_active(caller.client, caller.freelancer)

    @override
    async def wait(self, caller: Caller, *, timeout: timedelta) -> None:
        """Wait for a change of the client."""
        await self._accounts.wait_for_change(caller.client, timeout=timeout)


class Stay:
    """Watches over open streams."""

    def __init__(
        self,
        *,
        standing: Standing,
        grace: timedelta,
        look_every: timedelta,
        cut_off: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch.

        Args:
            standing: Knows who is welcome.
            grace: How long after the end of its proof a caller may stay.
            look_every: How often all of this is looked at.
            cut_off: Whether this replica hears of nothing any more, while others may.
            monotonic: The clock of `Proof.ends`, in seconds.
        """
        self._standing = standing
        self._cut_off = cut_off
        self._grace = grace.total_seconds()
        self._look_seconds = look_every.total_seconds()
        self._monotonic = monotonic

    async def end(self, rpc: Rpc, announce: Announce | None = None) -> NoReturn:
        """Wait until the caller must go.

        Args:
            rpc: The call.
            announce: Called once, at the moment when the proof has expired and the grace begins.

        Raises:
            UnauthenticatedError: Its token, or its certificate, expired a grace ago.
            ForbiddenError: It is not welcome any more.
            ReplicaCutOffError: Here it would hear nothing any more; another replica knows.
        """
        proof = rpc.proof
        while True:
            pause = self._look_seconds
            if proof is not None and proof.ends is not None:
                left = proof.ends - self._monotonic()
                if left <= 0 and announce is not None:
                    told, announce = announce, None
                    await told(proof.expired(), timedelta(seconds=max(0.0, left + self._grace)))
                if left + self._grace <= 0:
                    raise proof.expired()
                pause = min(pause, left if left > 0 else left + self._grace)
            await self._standing.wait(rpc.caller, timeout=timedelta(seconds=pause))
            if self._cut_off():
                raise ReplicaCutOffError("This replica has lost its database. Connect again: others may have it.")
            try:
                await self._standing.check(rpc.caller)
            except UnavailableError:
                continue  # a database that is away is told elsewhere, and is no reason to end a conversation
