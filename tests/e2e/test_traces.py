"""One prompt, one trace: from the platform's call through service, agent and gateway to the model API."""

from __future__ import annotations

import grpc.aio
import pytest

from sandboxd.v1 import sandbox_pb2, sandbox_pb2_grpc, stream_pb2
from tests.e2e.conftest import StackMaker
from tests.eventually import eventually
from tests.gateway_world import CANARY
from tests.integration.api_world import next_event
from tests.traces import GIVEN, GIVEN_SPAN, GIVEN_TRACE, Seen, a_collector

pytestmark = pytest.mark.timeout(300)

SERVICE = "sandboxd.v1.SandboxService"


async def test_one_prompt_is_one_connected_trace(postgres_url: str, make_stack: StackMaker) -> None:
    async with (
        a_collector() as collector,
        make_stack(
            postgres_url,
            api_key=CANARY,
            settings={"SANDBOXD_OTLP_ENDPOINT": collector.url, "SANDBOXD_LOG_LEVEL": "debug"},
        ) as stack,
        grpc.aio.insecure_channel(f"127.0.0.1:{stack.ports['grpc']}") as channel,
    ):
        stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
        metadata = (("authorization", f"Bearer {stack.token}"), ("traceparent", GIVEN))
        sandbox = sandbox_pb2.Sandbox(model="gemini-2.5-flash")
        created = await stub.Create(
            sandbox_pb2.CreateRequest(request_id="request-1", sandbox=sandbox), metadata=metadata, timeout=60
        )
        call = stub.Stream(metadata=metadata)
        opening = stream_pb2.Open(sandbox=created.sandbox.name)
        await call.write(stream_pb2.StreamRequest(request_id="request-2", open=opening))
        await next_event(call, "stream_ready")
        prompt = stream_pb2.Prompt(text="fake:say(text=hello)")
        await call.write(stream_pb2.StreamRequest(request_id="request-3", prompt=prompt))
        await next_event(call, "turn_completed")
        await call.done_writing()
        logs = [stack.home / "serve.log", stack.home / "gateway.log", *stack.home.rglob("agent*.log")]
        log = "".join(path.read_text(errors="replace") for path in logs)

        def whole() -> dict[str, Seen]:
            found = {span.name: span for span in collector.spans if span.trace == GIVEN_TRACE}
            missing = {"turn", "upstream.call", f"{SERVICE}/Stream", f"{SERVICE}/Create", "sandbox.creating"} - set(
                found
            )
            assert not missing, f"not exported yet: {missing}"
            return found

        spans = await eventually(whole, within=30)
        requests = list(stack.model.requests)

    all_ids = {span.id for span in collector.spans if span.trace == GIVEN_TRACE}
    assert {span.parent for span in collector.spans if span.trace == GIVEN_TRACE} <= all_ids | {GIVEN_SPAN}
    way = [f"{SERVICE}/Stream", f"{SERVICE}/Stream/prompt", "turn", "agent.model_call", "gateway.call", "upstream.call"]
    assert [spans[name].parent for name in way] == [GIVEN_SPAN, *(spans[name].id for name in way[:-1])]
    assert [spans[name].service for name in way] == ["sandboxd-serve"] * 3 + ["sandboxd-gateway"] * 3
    steps = {span.name for span in collector.spans if span.parent == spans["sandbox.creating"].id}
    assert steps >= {"backend.start", "sandbox.token", "sandbox.settle"}
    assert any(span.name == "agent.SetModelEndpoint" for span in collector.spans)
    assert len([span for span in collector.spans if span.trace == GIVEN_TRACE]) < 60, "no span for each event"
    assert GIVEN_TRACE in log, "log lines name the trace"
    assert not [name for request in requests for name in request["headers"] if name.lower() == "traceparent"]
    assert b"fake:say" not in collector.raw, "no text of a person is in a trace"
    assert len(logs) > 2, "the agent's, too"
    for secret in (stack.token, CANARY, "fake:say", "eyJ"):  # so begins every signed token
        assert secret not in log
        assert secret.encode() not in collector.raw
