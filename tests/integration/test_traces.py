"""Traces where rooms meet: a turn that outlives its replica, and model calls below a turn that is not reported yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sandboxd.model.events import PermissionRequest, TurnCompleted
from sandboxd.model.ids import RequestId, SessionId, TurnId
from sandboxd.model.session import TurnState
from sandboxd.model.trace import parse_traceparent, turn_context
from sandboxd.v1 import sandbox_pb2, stream_pb2
from tests.contract.usage_world import an_id
from tests.fake_gemini import FakeGemini
from tests.fakes.usage import FakeSession
from tests.gateway_world import GatewayWorld, config_for
from tests.integration.api_world import a_world, next_event, rest_of
from tests.stream_world import StreamWorld
from tests.traces import GIVEN, GIVEN_SPAN, GIVEN_TRACE, Traces


async def test_a_turn_is_one_span_below_its_caller_with_the_commits_that_moved_it() -> None:
    traces = Traces()
    world = StreamWorld(tracer=traces.tracer)
    async with world.replica() as replica:
        client = await replica.open()
        with traces.tracer.span("caller", parent=parse_traceparent(GIVEN)):
            await client.prompt("say hello")
        await client.until(TurnCompleted)

    turn, caller = traces.one("turn"), traces.one("caller")
    assert (turn.trace, turn.parent) == (GIVEN_TRACE, caller.id)
    assert turn.attributes["sandboxd.stop_reason"] == "end_turn"
    assert turn.start <= turn.end
    below = [span.name for span in traces.spans if span.parent == turn.id]
    assert below.count("journal.commit") >= 2
    assert len(traces.spans) < 12, "a span for every event is too many"


async def test_a_turn_that_waits_for_the_cli_has_its_start_below_it() -> None:
    traces = Traces()
    world = StreamWorld(tracer=traces.tracer)
    async with world.replica() as replica:
        client = await replica.open()
        await client.prompt("ask may I")
        await client.until(PermissionRequest)
        world.sandboxes.new_life()
        await client.until(TurnCompleted)
        with traces.tracer.span("caller", parent=parse_traceparent(GIVEN)):
            await client.turn("say hello")

    turn = next(span for span in traces.spans if span.name == "turn" and span.trace == GIVEN_TRACE)
    assert traces.one("cli.start").parent == turn.id


async def test_a_turn_that_another_replica_ends_is_reported_in_the_place_that_was_promised() -> None:
    traces = Traces()
    world = StreamWorld(tracer=traces.tracer)
    async with world.replica() as replica:
        client = await replica.open()
        with traces.tracer.span("caller", parent=parse_traceparent(GIVEN)):
            accepted = await client.prompt("ask may I")
        asked = await client.until(PermissionRequest)
        session = client.session
    assert isinstance(asked, PermissionRequest)

    async with world.replica() as replica:
        client = await replica.open(session, after_sequence=client.sequences[-1])
        await client.handle.answer(
            request_id=RequestId(an_id("req")),
            body_hash=b"",
            permission=asked.permission,
            option="proceed_once",
        )
        await client.until(TurnCompleted)

    turn = traces.one("turn")
    assert accepted.turn is not None
    promised = turn_context(f"00-{GIVEN_TRACE}-{traces.one('caller').id}-01", accepted.turn)
    assert promised is not None
    assert (turn.trace, turn.id, turn.parent) == (promised.trace_id, promised.span_id, traces.one("caller").id)


async def test_a_conversation_that_outlives_the_call_that_opened_it_leaves_that_call_s_trace() -> None:
    traces = Traces()
    world = StreamWorld(tracer=traces.tracer)
    async with world.replica() as replica:
        with traces.tracer.span("opening", parent=parse_traceparent(GIVEN)):
            client = await replica.open()
        await client.turn("say hello")

    assert {span.name for span in traces.spans if span.trace == GIVEN_TRACE} == {"opening"}


def names(request: dict[str, Any]) -> dict[str, str]:
    """Headers that the upstream received, by name in lower case."""
    return {name.lower(): value for name, value in request["headers"].items()}


@asynccontextmanager
async def a_gateway(
    path: Path, traces: Traces, *, tell: bool = False
) -> AsyncIterator[tuple[GatewayWorld, TurnId, SessionId]]:
    with FakeGemini(key=None) as fake:
        world = GatewayWorld(fake=fake, config=config_for(fake, path, trace_upstream=tell), tracer=traces.tracer)
        turn, session = TurnId(an_id("trn")), SessionId(an_id("ses"))
        world.ledger.sessions[session] = FakeSession(
            sandbox=world.identity.sandbox, turn=turn, turn_state=TurnState.RUNNING, traceparent=GIVEN
        )
        async with world.running():
            yield world, turn, session


async def test_a_model_call_hangs_below_the_turn_through_agent_and_gateway_to_the_upstream(tmp_path: Path) -> None:
    traces = Traces()
    async with a_gateway(tmp_path, traces) as (world, turn, session):
        headers = {"x-sandboxd-session": session, "x-sandboxd-agent-elapsed": "250000"}
        status, _ = await world.ask("fake:say(text=hi)", headers=headers)
        await world.settled()
        received = await world.received()

    above = turn_context(GIVEN, turn)
    assert status == 200
    assert above is not None
    agent, gateway, upstream = (traces.one(name) for name in ("agent.model_call", "gateway.call", "upstream.call"))
    assert {agent.trace, gateway.trace, upstream.trace} == {GIVEN_TRACE}
    assert (agent.parent, gateway.parent, upstream.parent) == (above.span_id, agent.id, gateway.id)
    assert gateway.start - agent.start == 250_000_000
    assert upstream.attributes["sandboxd.http_status"] == 200
    assert "traceparent" not in names(received[0]), "the context is nobody's business upstream"


async def test_the_upstream_is_told_the_context_only_where_a_setting_says_so(tmp_path: Path) -> None:
    traces = Traces()
    async with a_gateway(tmp_path, traces, tell=True) as (world, _, session):
        await world.ask("fake:say(text=hi)", headers={"x-sandboxd-session": session})
        received = await world.received()

    upstream = traces.one("upstream.call")
    assert names(received[0])["traceparent"] == f"00-{GIVEN_TRACE}-{upstream.id}-01"


@pytest.mark.parametrize(
    "elapsed", ["", "-5", "1e9", "999999999", "12;drop", "\N{ARABIC-INDIC DIGIT THREE}", "60000001"]
)
async def test_what_a_sandbox_says_adds_nothing_to_a_trace_but_a_bounded_number(tmp_path: Path, elapsed: str) -> None:
    traces = Traces()
    lies = {
        "traceparent": "00-ffffffffffffffffffffffffffffffff-ffffffffffffffff-01",
        "tracestate": "canary=1",
        "baggage": "canary=1",
        "x-canary": "canary",
        "x-sandboxd-agent-elapsed": elapsed,
    }
    async with a_gateway(tmp_path, traces) as (world, _, session):
        status, _ = await world.ask("fake:say(text=hi)", headers={"x-sandboxd-session": session, **lies})
        received = await world.received()

    assert status == 200
    assert {span.trace for span in traces.spans} == {GIVEN_TRACE}
    agent, gateway = traces.one("agent.model_call"), traces.one("gateway.call")
    assert 0 <= gateway.start - agent.start <= 60_000_000_000
    assert "canary" not in "".join(span.to_json() for span in traces.exporter.get_finished_spans())
    assert not {"traceparent", "tracestate", "baggage"} & names(received[0]).keys()


async def test_a_call_without_a_turn_is_a_trace_of_its_own(tmp_path: Path) -> None:
    traces = Traces()
    async with a_gateway(tmp_path, traces) as (world, _, _):
        await world.ask("fake:say(text=hi)", headers={"x-sandboxd-agent-elapsed": "5"})
        await world.settled()

    gateway = traces.one("gateway.call")
    assert gateway.parent == ""
    assert traces.one("upstream.call").parent == gateway.id
    assert {span.name for span in traces.spans} == {"gateway.call", "upstream.call"}


async def test_an_upstream_that_fails_marks_the_spans_with_a_reason(tmp_path: Path) -> None:
    traces = Traces()
    async with a_gateway(tmp_path, traces) as (world, _, session):
        await world.ask("fake:reset", headers={"x-sandboxd-session": session})
        await world.settled()

    assert traces.one("gateway.call").failed
    assert "fake:" not in "".join(span.to_json() for span in traces.exporter.get_finished_spans())


async def test_an_rpc_is_a_span_below_the_platform_s_and_a_refused_one_says_why(tmp_path: Path) -> None:
    traces = Traces()
    async with a_world(tmp_path, tracer=traces.tracer) as world:
        metadata = (*world.metadata(), ("traceparent", GIVEN))
        await world.sandboxes.List(sandbox_pb2.ListRequest(), metadata=metadata)
        with pytest.raises(Exception, match="does not exist"):
            await world.sandboxes.Get(sandbox_pb2.GetRequest(name="sandboxes/sbx-9"), metadata=metadata)
        with pytest.raises(Exception, match="authorization"):
            await world.sandboxes.List(sandbox_pb2.ListRequest(), metadata=(("traceparent", GIVEN),))

    listed, got = traces.one("sandboxd.v1.SandboxService/List"), traces.one("sandboxd.v1.SandboxService/Get")
    assert {(span.trace, span.parent) for span in (listed, got)} == {(GIVEN_TRACE, GIVEN_SPAN)}
    assert (listed.failed, got.failed) == ("", "SANDBOX_NOT_FOUND")
    assert len(traces.spans) == 2, "who has no token adds nothing"


@pytest.mark.parametrize("traced", [True, False])
async def test_a_prompt_on_a_long_stream_is_a_span_where_the_platform_traces_else_a_trace(
    tmp_path: Path, traced: bool
) -> None:
    traces = Traces()
    async with a_world(tmp_path, tracer=traces.tracer) as world:
        more = (("traceparent", GIVEN),) if traced else ()
        created = await world.sandboxes.Create(
            sandbox_pb2.CreateRequest(request_id="request-0"), metadata=world.metadata()
        )
        call = world.sandboxes.Stream(metadata=(*world.metadata(), *more))
        opening = stream_pb2.Open(sandbox=created.sandbox.name)
        await call.write(stream_pb2.StreamRequest(request_id="request-1", open=opening))
        await next_event(call, "stream_ready")
        prompt = stream_pb2.Prompt(text="hello")
        await call.write(stream_pb2.StreamRequest(request_id="request-2", prompt=prompt))
        await next_event(call, "acknowledged")
        await call.done_writing()
        await rest_of(call)

    command = traces.one("sandboxd.v1.SandboxService/Stream/prompt")
    if traced:
        stream = traces.one("sandboxd.v1.SandboxService/Stream")
        assert (command.trace, command.parent) == (GIVEN_TRACE, stream.id)
    else:
        assert command.parent == ""
        assert len(command.links) == 1
