"""Calls that one transaction does, once: the request id, the change and the encoded answer become durable together.

For clients, keys' metadata, budgets, prices and their like, which touch nothing outside the database. A repeated
request is answered with the bytes that the first one was answered with.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from sandboxd.manager.ports import REQUEST_KEPT_FOR, RequestOutcome, RequestRecord, UnitOfWork, UnitsOfWork
from sandboxd.model.caller import Request
from sandboxd.model.errors import ConflictError, InternalError, RequestIdReusedError
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.sources import Clock

PLATFORM: Final = ClientId("")
"""Namespace of the request ids of platform-wide calls."""
ATTEMPTS: Final = 3
"""How often a transaction that collides with another one is begun."""

Result = TypeVar("Result")


class Once:
    """Runs changes with their request id."""

    def __init__(self, *, units: UnitsOfWork, clock: Clock) -> None:
        self._units = units
        self._clock = clock

    async def run(
        self,
        request: Request,
        method: str,
        change: Callable[[UnitOfWork], Awaitable[Result]],
        *,
        encode: Callable[[Result], bytes],
        about: str = "",
        namespace: ClientId | None = None,
    ) -> bytes:
        """Make a change and answer its encoded result, or answer what the first request of this id was answered with.

        What `change` raises undoes everything, the request id with it: the same id may be tried again.

        Args:
            request: Who asks.
            method: Name of the call; the same id for another call is another body.
            change: Makes the change in the unit of work, and must touch nothing else: it may run more than once.
            encode: Turns the result into the bytes of the response.
            about: Resource name of what the call is about; what is erased with that thing takes the request along.
            namespace: Whose request ids these are; the caller's client where none is named, `PLATFORM` for calls that
                belong to no client.

        Raises:
            RequestIdReusedError: The request id was used with another body.
            ConflictError: It collided with other transactions every time.
        """
        now = self._clock.now()
        claim = RequestRecord(
            client=request.caller.client if namespace is None else namespace,
            request_id=request.request_id,
            method=method,
            subject=request.caller.subject,
            body_hash=request.body_hash,
            sandbox=SandboxId(about),
            create_time=now,
            expire_time=now + REQUEST_KEPT_FOR,
        )
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._attempt(claim, change, encode)
            except ConflictError as error:
                if type(error) is not ConflictError:
                    raise  # a decision of the change, not a collision
        return await self._attempt(claim, change, encode)

    async def _attempt(
        self,
        claim: RequestRecord,
        change: Callable[[UnitOfWork], Awaitable[Result]],
        encode: Callable[[Result], bytes],
    ) -> bytes:
        async with self._units.begin() as work:
            earlier = await work.requests.claim(claim)
            if earlier is not None:
                return _answer(earlier, claim)
            response = encode(await change(work))
            await work.requests.finish(claim.client, claim.request_id, RequestOutcome(response=response))
            await work.commit()
        return response


def _answer(earlier: RequestRecord, mine: RequestRecord) -> bytes:
    if (earlier.method, earlier.subject, earlier.body_hash) != (mine.method, mine.subject, mine.body_hash):
        raise RequestIdReusedError(mine.request_id)
    if earlier.outcome is None or earlier.outcome.response is None:
        # Claim and outcome become durable together, so that this is no request of ours.
        raise InternalError(f"The request {mine.request_id} has no answer.")
    return earlier.outcome.response
