"""Puts calls on record: the intent of one that changes something before it runs, its outcome, and every refusal.

Two interceptors, because a refusal may come from any part of the frame, and an intent is written when all of the frame
has let the call pass.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from typing_extensions import override

from sandboxd.api.grpc.deeds import deed_of, outcome_of, target_of
from sandboxd.api.grpc.interceptors.failures import first_of
from sandboxd.api.grpc.rpc import CallInterceptor, Rpc
from sandboxd.model.errors import ErrorKind, SandboxdError
from sandboxd.monitor.audit_ports import AuditTrail, Deed

INTENT_WAIT: Final = timedelta(seconds=5)
"""How long a call waits for its intent to become durable; then it is refused."""
REFUSALS: Final = frozenset({ErrorKind.UNAUTHENTICATED, ErrorKind.FORBIDDEN, ErrorKind.ABSENT, ErrorKind.EXHAUSTED})
"""Kinds of errors that are a refusal. Somebody else's thing is absent like one that never was: both are on record."""


@dataclass(slots=True)
class Record:
    """A deed that is on record and goes on."""

    target: str = ""
    """What it turned out to be done on."""


@asynccontextmanager
async def on_record(trail: AuditTrail, rpc: Rpc, deed: Deed) -> AsyncIterator[Record]:
    """Make an intent durable, run what it is about, and record how that ended.

    Raises:
        AuditUnavailableError: The intent could not be written; nothing was run.
    """
    intent = await trail.intend(deed, timeout=rpc.remaining(at_most=INTENT_WAIT))
    record = Record()
    try:
        yield record
    except BaseException as error:
        trail.conclude(intent, outcome_of(error, deadline_over=_deadline_over(rpc)))
        raise
    trail.conclude(intent, outcome_of(None, target=record.target))


class AuditInterceptor(CallInterceptor):
    """Innermost: writes the intent of a mutating unary call before it runs, and its outcome after. Fails closed."""

    def __init__(self, *, trail: AuditTrail) -> None:
        self._trail = trail

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Put the call on record, then run it."""
        if rpc.streaming or rpc.permission is None or not rpc.permission.mutating:
            yield
            return
        async with on_record(self._trail, rpc, deed_of(rpc)) as record:
            rpc.on_record = True
            yield
            record.target = target_of(rpc.response)


class DenialInterceptor(CallInterceptor):
    """Outside of all that may refuse: puts refusals on record that no intent stands for."""

    def __init__(self, *, trail: AuditTrail) -> None:
        self._trail = trail

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Run the call, and put on record where it was refused."""
        try:
            yield
        except SandboxdError as error:
            self._record(rpc, error)
            raise
        except BaseExceptionGroup as group:
            ours, rest = group.split(SandboxdError)
            if ours is not None and rest is None:
                self._record(rpc, first_of(ours))
            raise

    def _record(self, rpc: Rpc, error: SandboxdError) -> None:
        if not rpc.on_record and error.kind in REFUSALS:
            self._trail.deny(deed_of(rpc, target=rpc.target), outcome_of(error))


def _deadline_over(rpc: Rpc) -> bool:
    return rpc.expires is not None and time.monotonic() >= rpc.expires
