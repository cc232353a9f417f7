"""The port of traces on OpenTelemetry's SDK. Imported only where a collector is set.

It uses no global provider: who reports spans was given the tracer. What is current travels in a context variable of the
SDK, which tasks inherit from the code that starts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio, Sampler
from typing_extensions import override

from sandboxd.model.trace import Span, SpanKind, TraceContext, Tracer, Value

_KINDS: Final = {
    SpanKind.INTERNAL: trace.SpanKind.INTERNAL,
    SpanKind.SERVER: trace.SpanKind.SERVER,
    SpanKind.CLIENT: trace.SpanKind.CLIENT,
}
_REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_NOWHERE: Final = contexts.Context()
_wanted: ContextVar[int] = ContextVar("sandboxd_span_id", default=0)


class _Ids(RandomIdGenerator):
    """Random ids, and the one that a span was promised before it was reported."""

    @override
    def generate_span_id(self) -> int:
        return _wanted.get() or super().generate_span_id()


class _Span:
    """A span of the SDK as the port knows it."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def context(self) -> TraceContext | None:
        return _place(self._span)

    def note(self, **attributes: Value) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(f"sandboxd.{name}", value)

    def fail(self, reason: str) -> None:
        self._span.set_status(trace.StatusCode.ERROR, reason)


class OtelTracer(Tracer):
    """Reports spans through processors of the SDK."""

    on = True

    def __init__(
        self, *, role: str, version: str, replica: str, processors: Sequence[SpanProcessor], sampling: float | None
    ) -> None:
        """Make it.

        Args:
            role: What this process is.
            version: Of sandboxd.
            replica: Name of this process among its like.
            processors: Where ended spans go.
            sampling: Share of the traces that begin here; None leaves it to OTEL_TRACES_SAMPLER, or keeps all.
        """
        resource = Resource.create(
            {"service.name": f"sandboxd-{role}", "service.version": version, "service.instance.id": replica}
        )
        sampler: Sampler | None = None if sampling is None else ParentBasedTraceIdRatio(sampling)
        self._provider = TracerProvider(resource=resource, sampler=sampler, id_generator=_Ids(), shutdown_on_exit=False)
        for processor in processors:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sandboxd", version)

    def close(self) -> None:
        """Send what waits, within the exporter's own deadline. Blocks."""
        self._provider.shutdown()

    @override
    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: TraceContext | None = None,
        root: bool = False,
        links: Sequence[TraceContext] = (),
        start: datetime | None = None,
        attributes: Mapping[str, Value] | None = None,
    ) -> Iterator[Span]:
        span = self._tracer.start_span(
            name,
            context=_NOWHERE if root else None if parent is None else _remote(parent),
            kind=_KINDS[kind],
            links=[trace.Link(_otel(link)) for link in links],
            attributes=_prefixed(attributes),
            start_time=None if start is None else _nanoseconds(start),
            record_exception=False,  # an exception's text may hold what nobody may see
            set_status_on_exception=False,
        )
        token = contexts.attach(trace.set_span_in_context(span))
        try:
            yield _Span(span)
        except BaseException as error:
            span.set_status(trace.StatusCode.ERROR, _reason(error))
            raise
        finally:
            contexts.detach(token)
            span.end()

    @override
    @contextmanager
    def step(
        self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, attributes: Mapping[str, Value] | None = None
    ) -> Iterator[Span]:
        present = trace.get_current_span()
        if not present.get_span_context().is_valid:
            yield _Span(present)
            return
        with self.span(name, kind=kind, attributes=attributes) as span:
            yield span

    @override
    def record(
        self,
        name: str,
        *,
        parent: TraceContext | None,
        start: datetime,
        end: datetime,
        own: TraceContext | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Value] | None = None,
        failed: str = "",
    ) -> None:
        promised = _wanted.set(int(own.span_id, 16) if own is not None else 0)
        try:
            span = self._tracer.start_span(
                name,
                context=_NOWHERE if parent is None else _remote(parent),
                kind=_KINDS[kind],
                attributes=_prefixed(attributes),
                start_time=_nanoseconds(start),
            )
        finally:
            _wanted.reset(promised)
        if failed:
            span.set_status(trace.StatusCode.ERROR, failed)
        span.end(end_time=_nanoseconds(max(start, end)))

    @override
    @contextmanager
    def below(self, context: TraceContext | None) -> Iterator[None]:
        token = contexts.attach(_NOWHERE if context is None else _remote(context))
        try:
            yield
        finally:
            contexts.detach(token)

    @override
    def current(self) -> TraceContext | None:
        return _place(trace.get_current_span())


def _place(span: trace.Span) -> TraceContext | None:
    found = span.get_span_context()
    if not found.is_valid:
        return None
    return TraceContext(
        trace_id=trace.format_trace_id(found.trace_id),
        span_id=trace.format_span_id(found.span_id),
        sampled=found.trace_flags.sampled,
    )


def _otel(context: TraceContext) -> trace.SpanContext:
    return trace.SpanContext(
        trace_id=int(context.trace_id, 16),
        span_id=int(context.span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED if context.sampled else trace.TraceFlags.DEFAULT),
    )


def _remote(context: TraceContext) -> contexts.Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(_otel(context)), _NOWHERE)


def _prefixed(attributes: Mapping[str, Value] | None) -> dict[str, Value] | None:
    return {f"sandboxd.{name}": value for name, value in attributes.items()} if attributes else None


def _reason(error: BaseException) -> str:
    """A stable word for an error: ours have one, of others only the class is shown."""
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, str) and _REASON.fullmatch(reason) else type(error).__name__


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000
