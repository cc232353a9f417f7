"""Traces in tests: a tracer whose spans stay in memory, and a collector that takes them by OTLP over HTTP."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id

from sandboxd.monitor.tracing import OtelTracer

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
"""What a platform sends: its trace, and its span."""
GIVEN_TRACE, GIVEN_SPAN = GIVEN[3:35], GIVEN[36:52]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A span as a collector sees it."""

    name: str
    trace: str
    id: str
    parent: str
    """Empty where it begins a trace."""
    service: str = ""
    attributes: Mapping[str, object] = field(default_factory=dict)
    failed: str = ""
    start: int = 0
    end: int = 0
    links: Sequence[str] = ()


class Traces:
    """A tracer and what it reported."""

    def __init__(self, *, sampling: float | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        processors = [SimpleSpanProcessor(self.exporter)]
        self.tracer = OtelTracer(role="test", version="1", replica="one", processors=processors, sampling=sampling)

    @property
    def spans(self) -> list[Seen]:
        return [_seen(span) for span in self.exporter.get_finished_spans()]

    def one(self, name: str) -> Seen:
        (found,) = [span for span in self.spans if span.name == name]
        return found


def _seen(span: ReadableSpan) -> Seen:
    assert span.context is not None
    return Seen(
        name=span.name,
        trace=format_trace_id(span.context.trace_id),
        id=format_span_id(span.context.span_id),
        parent=format_span_id(span.parent.span_id) if span.parent else "",
        attributes=dict(span.attributes or {}),
        failed=span.status.description or "",
        start=span.start_time or 0,
        end=span.end_time or 0,
        links=[format_span_id(link.context.span_id) for link in span.links],
    )


class Collector:
    """Takes what exporters send."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.raw = b""
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.raw += body
        message = ExportTraceServiceRequest.FromString(body)
        for resource in message.resource_spans:
            about = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [
                    Seen(
                        name=span.name,
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        service=about["service.name"],
                        attributes={
                            one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value")
                            for one in span.attributes
                        },
                        failed=span.status.message,
                        start=span.start_time_unix_nano,
                        end=span.end_time_unix_nano,
                        links=[link.span_id.hex() for link in span.links],
                    )
                    for span in scope.spans
                ]
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )


@asynccontextmanager
async def a_collector() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield collector
    finally:
        await asyncio.wait_for(runner.cleanup(), 10)
