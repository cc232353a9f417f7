"""The spans of one model call: the agent's part, the gateway's, and the upstream's, below the turn that they belong to.

The CLI between the turn and the agent passes no context on. The ledger's row knows the turn, and the turn its caller's
trace, so the place comes from there and never from the request: a sandbox is untrusted and adds nothing to a trace but
one bounded number, the microseconds that its agent spent before the gateway.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from aiohttp import web

from sandboxd.gateway.metered_call import MeteredCall
from sandboxd.gateway.ports import Clock
from sandboxd.model.trace import Span, SpanKind, TraceContext, Tracer, turn_context

ELAPSED_HEADER: Final = "x-sandboxd-agent-elapsed"
"""Microseconds, from the agent's model endpoint."""
MAX_ELAPSED: Final = timedelta(seconds=60)
"""An agent that claims more is not believed: its connection attempts end before."""
_MICROSECONDS: Final = re.compile(r"[0-9]{1,8}", re.ASCII)


class CallTraces:
    """Reports the spans of calls."""

    def __init__(self, *, tracer: Tracer, clock: Clock, tell_upstream: bool) -> None:
        self._tracer = tracer
        self._clock = clock
        self._tell_upstream = tell_upstream

    @contextmanager
    def call(self, call: MeteredCall, request: web.Request) -> Iterator[None]:
        """Report a call from its request on; the block begins when its row is open."""
        if not self._tracer.on:
            yield
            return
        received = call.start.start_time
        above = turn_context(call.traceparent, call.turn) if call.turn is not None else None
        agent = None if above is None else replace(above, span_id=secrets.token_hex(8))
        try:
            with self._tracer.span(
                "gateway.call",
                kind=SpanKind.SERVER,
                parent=agent,
                root=agent is None,
                start=received,
                attributes={
                    "client": call.start.identity.client,
                    "sandbox": call.start.identity.sandbox,
                    "session": call.session or "",
                    "turn": call.turn or "",
                    "usage_event": call.start.id,
                    "method": call.start.method.value,
                    "model": call.start.model,
                },
            ) as span:
                yield
                self._note(call, span)
        finally:
            if agent is not None:
                self._report_agent(request, agent=agent, above=above, received=received)

    @contextmanager
    def upstream(self) -> Iterator[tuple[Span, str]]:
        """Report the time at the model API; gives the span and the context that may be sent there, empty for none."""
        with self._tracer.step("upstream.call", kind=SpanKind.CLIENT) as span:
            told = span.context if self._tell_upstream else None
            yield span, told.traceparent if told else ""

    def _note(self, call: MeteredCall, span: Span) -> None:
        if call.http_status is not None:
            span.note(http_status=call.http_status)
        if call.reader.usage is not None:
            span.note(total_tokens=call.reader.usage.total)
        if call.error is not None:
            span.fail(call.error.value)

    def _report_agent(
        self, request: web.Request, *, agent: TraceContext, above: TraceContext | None, received: datetime
    ) -> None:
        text = request.headers.get(ELAPSED_HEADER, "")
        elapsed = timedelta(microseconds=int(text)) if _MICROSECONDS.fullmatch(text) else timedelta(0)
        self._tracer.record(
            "agent.model_call",
            parent=above,
            own=agent,
            kind=SpanKind.SERVER,
            start=received - min(elapsed, MAX_ELAPSED),
            end=self._clock.now(),
            attributes={"reported_by": "gateway"},
        )
