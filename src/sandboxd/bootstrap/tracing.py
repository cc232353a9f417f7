"""Traces of a role: the exporter where a collector is set; else nothing is imported and nothing is reported."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import structlog

from sandboxd import __version__
from sandboxd.model.trace import NO_TRACES, Tracer
from sandboxd.monitor.logging import log_places
from sandboxd.settings import Settings

log = structlog.get_logger("sandboxd.bootstrap")

STANDARD: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables by which every program with OpenTelemetry's SDK knows its collector."""
EXPORT_SECONDS: Final = 5.0
"""Deadline of one export, and so about the longest that a collector that hangs can hold up the end of a process."""
MAX_WAITING: Final = 4096
"""Spans that wait for the collector; more are dropped: a trace is never worth the service."""


def make_tracer(settings: Settings, *, role: str) -> tuple[Tracer, Callable[[], None]]:
    """Return the tracer of this process, and what sends the rest when it ends (it blocks: call it in a thread)."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or not (settings.otlp_endpoint or any(os.environ.get(name) for name in STANDARD)):
        return NO_TRACES, lambda: None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415  only where traces are on
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    from sandboxd.monitor.tracing import OtelTracer  # noqa: PLC0415

    endpoint = f"{settings.otlp_endpoint}/v1/traces" if settings.otlp_endpoint else None
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
    processor = BatchSpanProcessor(
        exporter, max_queue_size=MAX_WAITING, schedule_delay_millis=1000, export_timeout_millis=EXPORT_SECONDS * 1000
    )
    tracer = OtelTracer(
        role=role,
        version=__version__,
        replica=settings.replica,
        processors=[processor],
        sampling=settings.trace_sampling,
    )
    log_places(tracer.current)
    log.info("traces.on", collector=settings.otlp_endpoint or "from OTEL_EXPORTER_OTLP_*")
    return tracer, tracer.close
