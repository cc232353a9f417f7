"""The sandboxes' port: every request is checked here, and only what passes is opened in the ledger and forwarded.

Checks are ordered by cost: address, token (before any byte of the body is read), policy, key, room, body, circuit,
ledger.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from aiohttp import web

from sandboxd.gateway.breaker import CircuitBreaker
from sandboxd.gateway.config import GatewayConfig
from sandboxd.gateway.forwarding import Forwarder
from sandboxd.gateway.inbound import BodyMemory, InboundBody, held_body
from sandboxd.gateway.meter import Meter
from sandboxd.gateway.metered_call import MeteredCall
from sandboxd.gateway.metrics import GatewayMetrics
from sandboxd.gateway.policy import ModelCall, parse_target
from sandboxd.gateway.ports import ApiKeys, Clock, ModelPolicies
from sandboxd.gateway.refusals import Refusal, RefusalReason, RefusedError, refuse
from sandboxd.gateway.secret import Secret
from sandboxd.gateway.tokens import SandboxTokenVerifier
from sandboxd.gateway.tracing import CallTraces
from sandboxd.model.errors import UnavailableError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import ENTROPY_BYTES, SandboxId, SessionId, is_id, make_id
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.model.usage import NOTHING_RESERVED, ModelMethod, Reservation, UsageEventId, reserve
from sandboxd.monitor.ports import CallStart

_log = structlog.get_logger()
SESSION_HEADER: Final = "x-sandboxd-session"
"""Carries the session id that the CLI's placeholder key named; set by the agent's model endpoint."""
_LOGGED_REFUSALS: Final = 10
"""Refusals that are logged in one second; the metric counts all."""


class CallHandler:
    """Serves the sandboxes' port."""

    def __init__(
        self,
        *,
        config: GatewayConfig,
        verifier: SandboxTokenVerifier,
        keys: ApiKeys,
        policies: ModelPolicies,
        meter: Meter,
        breaker: CircuitBreaker,
        forwarder: Forwarder,
        metrics: GatewayMetrics,
        clock: Clock,
        traces: CallTraces,
    ) -> None:
        self._config = config
        self._verifier = verifier
        self._keys = keys
        self._policies = policies
        self._meter = meter
        self._breaker = breaker
        self._forwarder = forwarder
        self._metrics = metrics
        self._clock = clock
        self._traces = traces
        self._memory = BodyMemory(limit=config.limits.held_request_bytes)
        self._running: Counter[SandboxId] = Counter()
        self._logged: tuple[int, int] = (0, 0)
        self.stopping = False
        """Set when the gateway is shut down: no new call begins."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one request, whatever it is."""
        try:
            return await self._serve(request)
        except RefusedError as error:
            return self._refused(error.refusal)
        except ConnectionError:
            raise  # the CLI is gone; there is nobody to answer
        except Exception as error:  # noqa: BLE001 - the interceptor; no traceback: it might hold what must not be seen
            _log.error("gateway.failed", error=type(error).__name__, where=_where(error))
            return self._refused(Refusal(reason=RefusalReason.INTERNAL))

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        received = self._clock.now()
        target = parse_target(request.raw_path, prefix=self._config.path_prefix)
        if request.method != "POST" or target is None:
            raise refuse(RefusalReason.PATH_UNKNOWN)
        identity = self._verifier.verify(_bearer(request)).identity
        key = await self._allow(identity, target)
        limits = self._config.limits
        with self._place(identity.sandbox), held_body(memory=self._memory, limit=limits.request_bytes) as body:
            await body.read(request, timeout_seconds=self._config.timeouts.request_body)
            call = MeteredCall(
                start=CallStart(
                    id=UsageEventId(make_id("use", at=received, entropy=os.urandom(ENTROPY_BYTES))),
                    gateway=self._meter.gateway,
                    identity=identity,
                    session_hint=_session_hint(request),
                    method=target.method,
                    model=target.model,
                    reserved=self._reservation(target, body),
                    start_time=received,
                )
            )
            await self._open(call)
            failpoint("gateway.after_reserve")
            with self._traces.call(call, request):
                return await self._forwarder.forward(
                    request,
                    call=call,
                    target=target,
                    key=key,
                    fallback=self._keys.fallback_for(identity.client),
                    body=body,
                )

    async def _allow(self, identity: SandboxIdentity, target: ModelCall) -> Secret:
        if self.stopping:
            raise refuse(RefusalReason.STOPPING)
        try:
            policy = await self._policies.policy_for(identity.client)
        except UnavailableError:
            raise refuse(RefusalReason.LEDGER_UNAVAILABLE) from None  # the same database, the same answer
        if target.method not in policy.methods:
            raise refuse(RefusalReason.METHOD_NOT_ALLOWED)
        if not policy.allows_model(target.model):
            raise refuse(RefusalReason.MODEL_NOT_ALLOWED)
        if target.method is ModelMethod.STREAM_GENERATE_CONTENT and not target.sse:
            raise refuse(RefusalReason.SSE_REQUIRED)
        key = self._keys.key_for(identity.client)
        if key is None:
            raise refuse(RefusalReason.KEY_MISSING)
        return key

    @contextmanager
    def _place(self, sandbox: SandboxId) -> Iterator[None]:
        """Count a call while it runs, within the bounds of all and of one sandbox."""
        if self._running.total() >= self._config.limits.calls:
            raise refuse(RefusalReason.GATEWAY_BUSY)
        if self._running[sandbox] >= self._config.limits.calls_per_sandbox:
            raise refuse(RefusalReason.TOO_MANY_CALLS)
        self._running[sandbox] += 1
        try:
            yield
        finally:
            self._running[sandbox] -= 1
            if not self._running[sandbox]:
                del self._running[sandbox]

    def _reservation(self, target: ModelCall, body: InboundBody) -> Reservation:
        wished = body.max_output_tokens()  # for every method: a body that is no JSON object is refused here
        if target.method is ModelMethod.COUNT_TOKENS:
            return NOTHING_RESERVED
        clamp = self._config.limits.output_tokens_clamp
        return reserve(request_bytes=len(body.data), max_output_tokens=wished, clamp=clamp)

    async def _open(self, call: MeteredCall) -> None:
        wait = self._breaker.admit()
        if wait is not None:
            raise refuse(RefusalReason.CIRCUIT_OPEN, retry_after=wait)
        try:
            await self._meter.open(call)
        except BaseException:
            self._breaker.withdrawn()
            raise

    def _refused(self, refusal: Refusal) -> web.Response:
        self._metrics.refusals.labels(refusal.reason.value).inc()
        now = int(asyncio.get_running_loop().time())
        second, logged = self._logged
        self._logged = (now, logged + 1 if second == now else 1)
        if self._logged[1] <= _LOGGED_REFUSALS:
            _log.info("gateway.refused", reason=refusal.reason.value, http_status=refusal.code)
        return web.Response(status=refusal.code, body=refusal.body(), headers=refusal.headers())


def _bearer(request: web.Request) -> str:
    """Return the sandbox token; no other place for credentials is looked at, and none is passed on."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise refuse(RefusalReason.TOKEN_MISSING)
    return token.strip()


def _session_hint(request: web.Request) -> SessionId | None:
    hint = request.headers.get(SESSION_HEADER, "")
    return SessionId(hint) if is_id(hint, "ses") else None


def _where(error: BaseException) -> str:
    """Name the innermost place of an error, without a word of what it held."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace else ""
