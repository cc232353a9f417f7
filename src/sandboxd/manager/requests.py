"""Requests that come twice: the same id with the same body is answered with what the first one came to."""

from __future__ import annotations

from datetime import timedelta

from sandboxd.manager.changes import Changes
from sandboxd.manager.intents import POLL_SECONDS
from sandboxd.manager.operations import Settled
from sandboxd.manager.outcome import restore_error
from sandboxd.manager.ports import REQUEST_KEPT_FOR, RequestOutcome, RequestRecord, UnitsOfWork
from sandboxd.model.caller import Request
from sandboxd.model.errors import DeadlineError, InternalError, RequestIdReusedError
from sandboxd.model.ids import SandboxId
from sandboxd.model.sources import Clock


class Requests:
    """Remembers requests and answers repeated ones."""

    def __init__(self, *, units: UnitsOfWork, clock: Clock, changes: Changes) -> None:
        self._units = units
        self._clock = clock
        self._changes = changes

    def record(
        self,
        request: Request,
        method: str,
        sandbox: SandboxId,
        *,
        kept_for: timedelta | None = REQUEST_KEPT_FOR,
        outcome: RequestOutcome | None = None,
    ) -> RequestRecord:
        """Build the row of a request; `kept_for` None keeps it as long as the sandbox's row."""
        now = self._clock.now()
        return RequestRecord(
            client=request.caller.client,
            request_id=request.request_id,
            method=method,
            subject=request.caller.subject,
            body_hash=request.body_hash,
            sandbox=sandbox,
            outcome=outcome,
            create_time=now,
            expire_time=None if kept_for is None else now + kept_for,
        )

    async def repeat(self, earlier: RequestRecord, mine: RequestRecord, *, timeout: timedelta) -> Settled:
        """Answer a repeated request; waits while the first one is in progress.

        Raises:
            RequestIdReusedError: The id was used with another body.
            DeadlineError: The first one is still in progress at the end of `timeout`.
            SandboxdError: What the first one came to.
        """
        if (earlier.method, earlier.subject, earlier.body_hash) != (mine.method, mine.subject, mine.body_hash):
            raise RequestIdReusedError(mine.request_id)
        deadline = self._clock.monotonic() + timeout.total_seconds()
        record: RequestRecord | None = earlier
        while record is not None and record.outcome is None:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise DeadlineError(
                    f"The request {mine.request_id} is still in progress. Repeat it with the same id for its result.",
                    request_id=mine.request_id,
                    sandbox=earlier.sandbox,
                )
            await self._changes.wait(earlier.sandbox, timeout=min(left, POLL_SECONDS))
            async with self._units.begin() as work:
                record = await work.requests.get(mine.client, mine.request_id)
        if record is None or record.outcome is None:
            raise InternalError(f"The request {mine.request_id} was forgotten while it was in progress.")
        if record.outcome.error is not None:
            raise restore_error(record.outcome.error)
        if record.outcome.sandbox is None:
            raise InternalError(f"The request {mine.request_id} has an outcome without a sandbox.")
        return Settled(sandbox=record.outcome.sandbox, kept=record.outcome.kept)
