"""One opened call on its way: sent, passed back as it comes, and settled before its end is passed back.

The order is the point. Every piece of a stream is passed on at once, and the answer's *end* is held back until the
settlement is in the ledger (or, after a deadline, in the spool), so that a turn that is complete for the CLI is already
billed. A stream that broke is passed on as broken: a clean end would make the CLI send the same prompt again, silently.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from aiohttp import web

from sandboxd.gateway.breaker import CircuitBreaker
from sandboxd.gateway.config import GatewayConfig
from sandboxd.gateway.inbound import InboundBody
from sandboxd.gateway.meter import Meter
from sandboxd.gateway.metered_call import MeteredCall
from sandboxd.gateway.metrics import GatewayMetrics
from sandboxd.gateway.policy import ModelCall
from sandboxd.gateway.ports import Clock
from sandboxd.gateway.refusals import RefusalReason, refuse
from sandboxd.gateway.scrub import KeyScrubber
from sandboxd.gateway.secret import Secret
from sandboxd.gateway.tracing import CallTraces
from sandboxd.gateway.upstream import GeminiUpstream, UpstreamAnswer, UpstreamError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.usage import CallError, ModelMethod

CALL_HEADER: Final = "x-sandboxd-usage-event"
"""Tells the caller the id of the ledger row."""
_ANSWERS: Final = {
    CallError.UPSTREAM_UNREACHABLE: RefusalReason.UPSTREAM_UNREACHABLE,
    CallError.UPSTREAM_TIMEOUT: RefusalReason.UPSTREAM_TIMEOUT,
    CallError.UPSTREAM_CUT: RefusalReason.UPSTREAM_CUT,
    CallError.UPSTREAM_REDIRECT: RefusalReason.UPSTREAM_REDIRECT,
    CallError.RESPONSE_TOO_LARGE: RefusalReason.RESPONSE_TOO_LARGE,
}
"""What the CLI is told where nothing of the answer was passed on yet."""


class Forwarder:
    """Sends opened calls to the upstream and brings back what it answers."""

    def __init__(
        self,
        *,
        config: GatewayConfig,
        meter: Meter,
        upstream: GeminiUpstream,
        breaker: CircuitBreaker,
        clock: Clock,
        traces: CallTraces,
        metrics: GatewayMetrics,
    ) -> None:
        self._limits = config.limits
        self._timeouts = config.timeouts
        self._meter = meter
        self._upstream = upstream
        self._breaker = breaker
        self._clock = clock
        self._traces = traces
        self._metrics = metrics
        self._cut_time = math.inf

    def stop(self) -> None:
        """Note that the gateway stops: calls that still run at the deadline are cut by it, and not by their CLIs."""
        # The HTTP server closes connections and only then cancels their handlers, so the time has to tell who it was.
        self._cut_time = asyncio.get_running_loop().time() + self._timeouts.shutdown - 0.05

    async def forward(
        self,
        request: web.Request,
        *,
        call: MeteredCall,
        target: ModelCall,
        key: Secret,
        body: InboundBody,
        fallback: Secret | None = None,
    ) -> web.StreamResponse:
        """Make the call, pass on its answer, settle it. The call is open in the ledger and admitted by the breaker.

        `fallback` is the key that stands in, once, where the API refuses the first one.

        Raises:
            RefusedError: Nothing of an answer could be passed on.
        """
        passing = _Passing(request, call=call, scrubber=KeyScrubber(key))
        reported = False
        try:
            async with asyncio.timeout(self._timeouts.total):
                with self._traces.upstream() as (span, traceparent):
                    sent = asyncio.get_running_loop().time()
                    async with self._upstream.post(
                        target, body=body.data, key=key, fallback=fallback, traceparent=traceparent
                    ) as answer:
                        passing.scrub(answer.key)
                        self._metrics.upstream_seconds.observe(asyncio.get_running_loop().time() - sent)
                        span.note(http_status=answer.status)
                        body.release()  # it is sent; a stream may last for half an hour
                        reported = True
                        self._report(answer.status)
                        await self._receive(answer, target=target, call=call, passing=passing)
        except (UpstreamError, TimeoutError) as error:
            call.error = error.error if isinstance(error, UpstreamError) else CallError.UPSTREAM_TIMEOUT
            if not reported:
                self._breaker.failed()
        except BaseException as error:
            # The CLI is gone (aiohttp cancels the handler, or a write fails), or the gateway stops: the block above has
            # cut the connection to the API already. The meter's own task settles the call; nobody waits for it here.
            if not reported:
                self._breaker.withdrawn()
            cut = asyncio.get_running_loop().time() >= self._cut_time
            call.error = CallError.GATEWAY_STOPPED if cut else passing.why_ended(error)
            _ = self._meter.settle(call)
            raise
        failpoint("gateway.before_settle")
        await asyncio.shield(self._meter.settle(call))
        failpoint("gateway.after_settle")
        return await passing.end()

    def _report(self, status: int) -> None:
        if status >= 500:
            self._breaker.failed()
        else:
            self._breaker.succeeded()

    async def _receive(
        self, answer: UpstreamAnswer, *, target: ModelCall, call: MeteredCall, passing: _Passing
    ) -> None:
        call.http_status = answer.status
        if 300 <= answer.status < 400:
            raise UpstreamError(CallError.UPSTREAM_REDIRECT)
        if answer.status == 200 and answer.sse and target.method is ModelMethod.STREAM_GENERATE_CONTENT:
            await self._stream(answer, call=call, passing=passing)
        else:
            await self._whole(answer, call=call, passing=passing)
        call.ended = True

    async def _stream(self, answer: UpstreamAnswer, *, call: MeteredCall, passing: _Passing) -> None:
        await passing.begin(answer)
        size = 0
        try:
            async for chunk in answer.chunks():
                self._note_first_byte(call)
                call.reader.feed(chunk)  # before the write: its usage counts even if the CLI is gone
                size += len(chunk)
                if size > self._limits.response_bytes:
                    raise UpstreamError(CallError.RESPONSE_TOO_LARGE)
                failpoint("gateway.mid_stream")
                await passing.write(chunk, timeout_seconds=self._timeouts.client_write)
        finally:
            call.reader.end()

    async def _whole(self, answer: UpstreamAnswer, *, call: MeteredCall, passing: _Passing) -> None:
        pieces: list[bytes] = []
        size = 0
        async for chunk in answer.chunks():
            self._note_first_byte(call)
            size += len(chunk)
            if size > self._limits.whole_response_bytes:
                raise UpstreamError(CallError.RESPONSE_TOO_LARGE)
            pieces.append(chunk)
        body = b"".join(pieces)
        await asyncio.to_thread(call.reader.read_body, body)
        passing.hold(answer, body)

    def _note_first_byte(self, call: MeteredCall) -> None:
        if call.first_byte_time is None:
            call.first_byte_time = self._clock.now()


class _Passing:
    """The CLI's side of one call."""

    def __init__(self, request: web.Request, *, call: MeteredCall, scrubber: KeyScrubber) -> None:
        self._request = request
        self._call = call
        self._scrubber = scrubber
        self._stream: web.StreamResponse | None = None
        self._held: web.Response | None = None

    def scrub(self, key: Secret) -> None:
        """Take this key out of what is passed on: the one that the answer came for."""
        self._scrubber = KeyScrubber(key)

    def why_ended(self, error: BaseException) -> CallError:
        """Tell what an error on this side of the gateway means."""
        transport = self._request.transport
        if isinstance(error, ConnectionError) or transport is None or transport.is_closing():
            return CallError.CLIENT_GONE
        return CallError.GATEWAY_STOPPED if isinstance(error, asyncio.CancelledError) else CallError.GATEWAY_FAILED

    async def begin(self, answer: UpstreamAnswer) -> None:
        """Send the head of a stream, before its first byte is there."""
        headers = {**self._headers(answer), "cache-control": "no-store", "x-accel-buffering": "no"}
        self._stream = web.StreamResponse(status=answer.status, headers=headers)
        await self._stream.prepare(self._request)

    async def write(self, chunk: bytes, *, timeout_seconds: float) -> None:
        """Pass on a piece of a stream.

        Raises:
            ConnectionError: The CLI is gone, or has taken nothing for that long.
        """
        if self._stream is None or not (passed := self._scrubber.feed(chunk)):
            return
        writing = asyncio.timeout(timeout_seconds)
        try:
            async with writing:
                await self._stream.write(passed)
        except TimeoutError:
            if writing.expired():
                raise ConnectionResetError("the CLI takes nothing") from None
            raise

    def hold(self, answer: UpstreamAnswer, body: bytes) -> None:
        """Keep a whole answer until the call is settled."""
        clean = self._scrubber.feed(body) + self._scrubber.end()
        self._held = web.Response(status=answer.status, body=clean, headers=self._headers(answer))

    async def end(self) -> web.StreamResponse:
        """End the answer as the API ended it, now that the call is settled.

        Raises:
            RefusedError: There is no answer to pass on.
        """
        if self._held is not None:
            return self._held
        error = self._call.error
        if self._stream is None:
            raise refuse(_ANSWERS.get(error, RefusalReason.INTERNAL) if error else RefusalReason.INTERNAL)
        if error is None:
            if rest := self._scrubber.end():
                await self._stream.write(rest)
            await self._stream.write_eof()
        elif self._request.transport is not None:
            self._request.transport.abort()
        return self._stream

    def _headers(self, answer: UpstreamAnswer) -> dict[str, str]:
        return {**answer.headers(), CALL_HEADER: self._call.start.id}
