"""The gateway's metrics. Every label's values are a closed set; no id, name, model or text is ever one."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sandboxd.gateway.breaker import CircuitState
from sandboxd.model.usage import CallError, TokenCounts

_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800)
_QUICK: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
FAMILIES: Final = (
    "gemini-2.0-flash-lite",
    "gemini-2.0-flash",
    "gemini-2.5-flash-lite",
    "gemini-2.5-flash",
    "gemini-2.5-pro",
    "gemini-3-flash",
    "gemini-3-pro",
    "gemini-3.1-flash-lite",
    "gemini-3.1-pro",
    "gemini-3.5-flash",
)
"""Families with a series of their own: a model's name comes from the sandbox, so it must not be a label itself."""
OTHER: Final = "other"


def family_of(model: str) -> str:
    """Return the known family of a model: itself, or that of which it is a variant; else `other`."""
    return next((name for name in FAMILIES if model == name or model.startswith(f"{name}-")), OTHER)


class GatewayMetrics:
    """All metrics of one gateway, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "sandboxd_gateway_calls_total",
            "Calls that were let through, by ModelMethod, class of the HTTP status, and CallError or OK.",
            ["method", "status_class", "outcome"],
            registry=registry,
        )
        self.refusals = Counter(
            "sandboxd_gateway_refusals_total",
            "Requests that the gateway answered itself, by RefusalReason.",
            ["reason"],
            registry=registry,
        )
        self.tokens = Counter(
            "sandboxd_gateway_tokens_total",
            "Tokens of ended calls by class; for dashboards, never for bills.",
            ["token_class"],
            registry=registry,
        )
        self.model_calls = Counter(
            "sandboxd_gateway_model_calls_total",
            "Calls that were let through, by family of the model (those we know; the rest is `other`).",
            ["family"],
            registry=registry,
        )
        self.upstream_seconds = Histogram(
            "sandboxd_gateway_upstream_seconds",
            "From a request's way to the model API until the head of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.oldest_spooled = Gauge(
            "sandboxd_gateway_oldest_spooled_seconds",
            "How long the oldest settlement has waited for the ledger; 0 where none waits.",
            registry=registry,
        )
        self.ledger_silence = Gauge(
            "sandboxd_gateway_ledger_silence_seconds",
            "How long ago the ledger last answered a beat; above 20 the gateway is not ready.",
            registry=registry,
        )
        self.unpriced = Counter(
            "sandboxd_gateway_unpriced_calls_total",
            "Ended calls that used tokens and have no price.",
            registry=registry,
        )
        self.call_seconds = Histogram(
            "sandboxd_gateway_call_seconds",
            "Whole calls, by ModelMethod.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_byte_seconds = Histogram(
            "sandboxd_gateway_first_byte_seconds",
            "From the request to the first byte of the API's answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.ledger_seconds = Histogram(
            "sandboxd_gateway_ledger_seconds",
            "What the ledger adds to a call, by operation (open, settle).",
            ["operation"],
            buckets=_QUICK,
            registry=registry,
        )
        self.ledger_failures = Counter(
            "sandboxd_gateway_ledger_failures_total",
            "Ledger operations that failed, by operation (open, settle, progress, beat).",
            ["operation"],
            registry=registry,
        )
        self.open_calls = Gauge("sandboxd_gateway_open_calls", "Calls that run now.", registry=registry)
        self.spooled = Gauge(
            "sandboxd_gateway_spooled_settlements", "Settlements that wait for the ledger.", registry=registry
        )
        self.circuit = Gauge(
            "sandboxd_gateway_circuit_state",
            "1 for the circuit's present state, by state.",
            ["state"],
            registry=registry,
        )

    def ended(
        self, *, method: str, model: str, status: int | None, error: CallError | None, tokens: TokenCounts
    ) -> None:
        """Count one call that ended."""
        self.model_calls.labels(family_of(model)).inc()
        status_class = f"{status // 100}xx" if status is not None and 100 <= status < 600 else "none"
        self.calls.labels(method, status_class, error.value if error else "OK").inc()
        for name in ("prompt", "cached", "output", "thoughts", "tool_use"):
            self.tokens.labels(name).inc(getattr(tokens, name))

    def circuit_is(self, state: CircuitState) -> None:
        """Show the circuit's state."""
        for one in CircuitState:
            self.circuit.labels(one.value).set(one is state)
