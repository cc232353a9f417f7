"""W3C's trace context, and the tracer on OpenTelemetry's SDK."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.model.errors import SandboxNotFoundError
from sandboxd.model.ids import SandboxId, TurnId
from sandboxd.model.trace import NO_TRACES, TraceContext, parse_traceparent, turn_context
from tests.traces import GIVEN, GIVEN_SPAN, GIVEN_TRACE, Traces

TURN = TurnId("trn-00000000000000000000000001")


def test_a_traceparent_is_read_and_written_as_it_was() -> None:
    read = parse_traceparent(GIVEN)

    assert read == TraceContext(trace_id=GIVEN_TRACE, span_id=GIVEN_SPAN, sampled=True)
    assert read.traceparent == GIVEN


@pytest.mark.parametrize("more", ["", "-", "-what-comes-later"])
def test_a_later_version_is_read_as_far_as_we_know_it(more: str) -> None:
    assert parse_traceparent(f"cc{GIVEN[2:]}{more}") == parse_traceparent(GIVEN)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "00",
        GIVEN[:-1],
        GIVEN + "-more",
        GIVEN + "\n",
        GIVEN.upper(),
        GIVEN.replace("4bf9", "4bg9"),
        "ff" + GIVEN[2:],
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        "01" + GIVEN[2:] + "-" + "x" * 300,
        "\N{ARABIC-INDIC DIGIT ZERO}" * 2 + GIVEN[2:],
    ],
)
def test_what_is_no_traceparent_is_none(text: str | None) -> None:
    assert parse_traceparent(text) is None


def test_the_place_of_a_turn_follows_from_its_name_alone() -> None:
    place = turn_context(GIVEN, TURN)

    assert place is not None
    assert place == turn_context(GIVEN, TURN)
    other = turn_context(GIVEN, TurnId("trn-2"))
    assert other is not None
    assert place.trace_id == other.trace_id == GIVEN_TRACE
    assert len({place.span_id, other.span_id, GIVEN_SPAN}) == 3
    assert parse_traceparent(place.traceparent) == place
    assert turn_context("", TURN) is None


def test_spans_nest_and_hang_below_a_context_from_elsewhere() -> None:
    traces = Traces()

    with traces.tracer.span("outer", parent=parse_traceparent(GIVEN)), traces.tracer.step("inner"):
        pass

    outer, inner = traces.one("outer"), traces.one("inner")
    assert (outer.trace, outer.parent) == (GIVEN_TRACE, GIVEN_SPAN)
    assert (inner.trace, inner.parent) == (outer.trace, outer.id)


def test_a_step_below_nothing_is_no_span() -> None:
    traces = Traces()

    with traces.tracer.step("alone"), traces.tracer.below(None), traces.tracer.step("alone, too"):
        pass

    assert traces.spans == []


def test_a_span_that_was_promised_is_reported_late_in_its_own_place() -> None:
    traces, began = Traces(), datetime(2026, 11, 28, tzinfo=UTC)
    own = turn_context(GIVEN, TURN)
    assert own is not None
    traces.tracer.record("call", parent=own, start=began, end=began)

    traces.tracer.record("turn", parent=parse_traceparent(GIVEN), own=own, start=began, end=began + timedelta(hours=2))

    turn = traces.one("turn")
    assert (turn.trace, turn.id, turn.parent) == (own.trace_id, own.span_id, GIVEN_SPAN)
    assert traces.one("call").parent == own.span_id
    assert turn.end == turn.start + 7_200_000_000_000


def test_what_the_caller_does_not_sample_is_not_reported() -> None:
    traces = Traces(sampling=1.0)
    dark = parse_traceparent(GIVEN[:-2] + "00")

    with traces.tracer.span("outer", parent=dark) as span, traces.tracer.step("inner"):
        assert span.context is not None
        assert not span.context.sampled

    assert traces.spans == []


def test_sampling_decides_for_traces_that_begin_here() -> None:
    traces = Traces(sampling=0.0)

    with traces.tracer.span("ours"):
        pass
    with traces.tracer.span("theirs", parent=parse_traceparent(GIVEN)):
        pass

    assert [span.name for span in traces.spans] == ["theirs"]


def test_an_error_marks_the_span_with_its_reason_and_never_with_its_text() -> None:
    traces = Traces()

    with pytest.raises(SandboxNotFoundError), traces.tracer.span("one"):
        raise SandboxNotFoundError(SandboxId("secret-canary"))
    with pytest.raises(ValueError, match="canary"), traces.tracer.span("two"):
        raise ValueError("secret-canary")

    one, two = traces.exporter.get_finished_spans()
    assert (one.status.description, two.status.description) == ("SANDBOX_NOT_FOUND", "ValueError")
    assert "canary" not in one.to_json() + two.to_json()


async def test_a_task_inherits_what_is_current_where_it_is_started() -> None:
    traces = Traces()

    async def work() -> None:
        with traces.tracer.step("work"):
            await asyncio.sleep(0)

    with traces.tracer.span("caller"):
        task = asyncio.create_task(work())
    await task

    assert traces.one("work").parent == traces.one("caller").id


def test_no_traces_do_nothing() -> None:
    with NO_TRACES.span("one", parent=parse_traceparent(GIVEN)) as span, NO_TRACES.step("two"):
        span.note(answer=42)
        span.fail("REASON")

        assert (span.context, NO_TRACES.current(), NO_TRACES.on) == (None, None, False)
