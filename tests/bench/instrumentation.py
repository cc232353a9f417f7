"""What the instruments cost: `python -m tests.bench.instrumentation` prints microseconds of processor time."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from sandboxd.bootstrap.sources import SystemClock
from sandboxd.gateway.metrics import GatewayMetrics
from sandboxd.model.events import SessionEvent, Text
from sandboxd.model.ids import SandboxId, SessionId
from sandboxd.model.trace import NO_TRACES, Tracer
from sandboxd.model.usage import TokenCounts
from sandboxd.monitor.tracing import OtelTracer
from sandboxd.stream.metrics import StreamMetrics
from sandboxd.stream.ports import Conversation, Entry
from sandboxd.stream.tracing import ConversationTraces

ROUNDS = 5


def microseconds(times: int, work: Callable[[], object]) -> float:
    """The best round's processor time for one piece of work."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(times):
            work()
        best = min(best, (time.process_time() - began) / times)
    return best * 1e6


def main() -> None:
    now, read = datetime.now(UTC), time.monotonic()
    sandbox = SandboxId("sbx")
    conversation = Conversation(sandbox=sandbox, epoch=1, owner="replica")
    events = [
        SessionEvent(session=SessionId("ses"), sequence=number, turn=None, event_time=now, body=Text(text="x"))
        for number in range(10)
    ]
    one, ten = (Entry(conversation=conversation, events=events[:number]) for number in (1, 10))
    stream, gateway = StreamMetrics(CollectorRegistry()), GatewayMetrics(CollectorRegistry())
    processors = [BatchSpanProcessor(InMemorySpanExporter())]
    on = OtelTracer(role="bench", version="1", replica="one", processors=processors, sampling=None)
    off = ConversationTraces(sandbox, NO_TRACES, SystemClock())
    traced = ConversationTraces(sandbox, on, SystemClock())
    tokens = TokenCounts(prompt=1)

    def span(tracer: Tracer) -> None:
        with tracer.span("work", root=True):
            pass

    def call() -> None:
        gateway.ended(method="generateContent", model="gemini-2.5-flash", status=200, error=None, tokens=tokens)

    print(f"events, one in a step     {microseconds(20_000, lambda: stream.published(one, oldest=read)):6.2f} each")
    print(f"events, ten in a step     {microseconds(5_000, lambda: stream.published(ten, oldest=read)) / 10:6.2f} each")
    print(f"a transaction             {microseconds(20_000, lambda: stream.appended(10, 0.01)):6.2f}")
    print(f"a step, traces off        {microseconds(20_000, lambda: off.committed(one, began=now)):6.2f}")
    print(f"a step, traces on         {microseconds(20_000, lambda: traced.committed(one, began=now)):6.2f}")
    print(f"a span, traces off        {microseconds(20_000, lambda: span(NO_TRACES)):6.2f}")
    print(f"a span, traces on         {microseconds(3_000, lambda: span(on)):6.2f}")
    print(f"a model call              {microseconds(5_000, call):6.2f}")
    on.close()


if __name__ == "__main__":
    main()
