"""Metrics stay bounded: 500 sandboxes with sessions, turns and calls of everybody make no more series than a few."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sandboxd.api.grpc.interceptors.metrics import MetricsInterceptor
from sandboxd.api.grpc.permissions import PERMISSIONS
from sandboxd.gateway.policy import ModelPolicy, StaticModelPolicies
from sandboxd.manager.metrics import ManagerMetrics
from sandboxd.model.events import Text
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId, SessionId, TurnId
from sandboxd.model.sandbox import SandboxState
from sandboxd.model.session import PromptInput, StopReason, Turn, TurnState
from sandboxd.monitor.process_metrics import ProcessMetrics
from sandboxd.stream.metrics import StreamMetrics
from sandboxd.stream.ports import Conversation, Entry
from sandboxd.v1 import sandbox_pb2
from tests.contract.journal_world import an_event
from tests.contract.usage_world import an_id, an_identity
from tests.fake_gemini import FakeGemini
from tests.gateway_world import GatewayWorld, config_for
from tests.integration.api_world import a_world, refused
from tools import metrics_page

SANDBOXES = 500
BUDGET = 4000
"""Series of one process. They grow with the RPCs (some 30 each), and not with who uses them."""
LOOKS_LIKE_AN_ID = (
    re.compile(r"\b[a-z]{3}-[0-9a-z]{20,}"),  # ours
    re.compile(r"[0-9a-f]{12,}", re.IGNORECASE),  # digests, traces
    re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-", re.IGNORECASE),  # UUIDs
    re.compile(r"[0-9]{5,}"),  # numbers of people and things, ports and moments
    re.compile(r"@|://|\s"),  # addresses, texts
)
PLAIN = {"le", "version", "python"}
"""Labels whose values are ours, whatever they look like."""
NOW = datetime(2026, 11, 28, tzinfo=UTC)


def series(registry: CollectorRegistry) -> Sequence[Sample]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return [sample for family in families for sample in family.samples]


def assert_bounded(registry: CollectorRegistry, *, strangers: Iterable[str] = ()) -> None:
    """Within the budget, and no label tells of anybody."""
    samples = series(registry)
    values = {
        value for sample in samples for name, value in sample.labels.items() if name not in {"le", "version", "python"}
    }

    assert len(samples) <= BUDGET
    assert not {value for value in values if len(value) > 80}
    assert not {value for value in values if any(form.search(value) for form in LOOKS_LIKE_AN_ID)}
    assert not values & set(strangers)


@pytest.mark.parametrize(
    "value", ["sbx-01m8hf0wjh421hm27kz4de9rmg", "4bf92f3577b34da6", "user 7", "ada@acme.test", "50051"]
)
def test_the_test_knows_an_id_when_it_sees_one(value: str) -> None:
    assert any(form.search(value) for form in LOOKS_LIKE_AN_ID)


async def test_five_hundred_sandboxes_of_as_many_people_leave_no_name_in_the_metrics_of_serve(tmp_path: Path) -> None:
    people = [f"person-{number}" for number in range(SANDBOXES)]
    async with a_world(tmp_path) as world:
        for number, person in enumerate(people):
            request = sandbox_pb2.CreateRequest(request_id=f"request-{number}-{person}")
            await world.sandboxes.Create(request, metadata=world.metadata(sub=person, client=f"client-{number}"))
            await refused(
                world.sandboxes.Get(
                    sandbox_pb2.GetRequest(name=f"sandboxes/{an_id('sbx')}"), metadata=world.metadata(sub=person)
                )
            )
        method = "/sandboxd.v1.SandboxService/{}"
        for number in range(50):
            call: Any = world.channel.unary_unary(method.format(f"Method{number}"))
            with pytest.raises(Exception, match="not found|UNIMPLEMENTED"):
                await call(b"", metadata=world.metadata())
        assert_bounded(world.registry, strangers=people)

    # Every RPC with every code is more than ever happens.
    registry = CollectorRegistry()
    ProcessMetrics(registry, role="serve", version="1")
    rpcs = MetricsInterceptor(registry=registry)
    for method, code in itertools.product(PERMISSIONS, grpc.StatusCode):
        rpcs._handled.labels(method=method, code=code.name).inc()
        rpcs._seconds.labels(method=method).observe(0.1)
        rpcs._in_flight.labels(method=method).inc()
    manager, stream = ManagerMetrics(registry), StreamMetrics(registry)
    for number in range(SANDBOXES):
        session, turn = SessionId(an_id("ses")), TurnId(an_id("trn"))
        ended = Turn(
            id=turn,
            session=session,
            number=number,
            request_id=RequestId(an_id("req")),
            state=TurnState.COMPLETED,
            prompt=PromptInput(text=f"secret {number}"),
            stop_reason=list(StopReason)[number % len(StopReason)],
            start_time=NOW,
            end_time=NOW + timedelta(seconds=number),
        )
        entry = Entry(
            conversation=Conversation(sandbox=SandboxId(an_id("sbx")), epoch=1, owner="replica"),
            events=[an_event(session, 1, Text(text=f"secret {number}"), turn=turn)],
            turns=[ended],
        )
        stream.published(entry, oldest=1.0)
        stream.appended(number, 0.1)
        for state in SandboxState:
            manager.operation(state, outcome=("done", "refused", "error", "cancelled")[number % 4], seconds=number)

    assert_bounded(registry, strangers=people)


async def test_five_hundred_sandboxes_that_call_models_of_any_name_leave_no_name_in_the_gateway(
    tmp_path: Path,
) -> None:
    with FakeGemini(key=None) as fake:
        anything = StaticModelPolicies(standard=ModelPolicy(models=("*",)))
        world = GatewayWorld(fake=fake, config=config_for(fake, tmp_path), policies=anything)
        async with world.running():
            names: list[str] = []
            for number in range(SANDBOXES):
                identity = replace(
                    an_identity(),
                    client=ClientId(f"client-{number}"),
                    freelancer=FreelancerId(f"person-{number}"),
                    sandbox=SandboxId(an_id("sbx")),
                    incarnation=IncarnationId(an_id("inc")),
                )
                world.ledger.incarnations[identity.incarnation] = identity
                model = f"gemini-{number}-{identity.freelancer}" if number % 2 else "gemini-2.5-flash"
                names += [identity.client, identity.freelancer, model] if number % 2 else [identity.client]
                headers = {"authorization": f"Bearer {world.token(identity)}", "x-sandboxd-session": an_id("ses")}
                script = ("say(text=hi)", "400", "safety", "reset")[number % 4]
                await world.ask(f"fake:{script}", model=model, headers=headers)
            await world.ask("fake:say(text=hi)", headers={"authorization": "Bearer nonsense"})
            text = await world.metrics()

        assert_bounded(world.registry, strangers=names)
        shown = set(re.findall(r"^# TYPE (\w+) (?:counter|gauge|histogram)$", text, re.MULTILINE))
        told = set(re.findall(r"^\| `(\w+)`", metrics_page.PAGE.read_text(), re.MULTILINE))
        assert {name for name in shown if not name.endswith("_created")} <= told, "a metric is on no page"
        assert f'sandboxd_gateway_model_calls_total{{family="other"}} {SANDBOXES // 2}.0' in text
