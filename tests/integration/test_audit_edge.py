"""What the gRPC edge puts on record: intents before, outcomes after, refusals, and nothing that must not be kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from sandboxd.api.grpc.server import ServerLimits
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.monitor.audit_ports import Deed, Outcome
from sandboxd.v1 import sandbox_pb2, session_pb2, stream_pb2
from tests.eventually import eventually
from tests.fakes.api import a_sandbox
from tests.integration.api_world import World, a_world, next_event, refused, rest_of

SECRET = "my secret prompt"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


def said(world: World) -> list[tuple[str, str, str, str]]:
    """(what, action, target, code) of everything on record."""
    return [
        (what, deed.action, (outcome.target if outcome else "") or deed.target, outcome.code if outcome else "")
        for what, deed, outcome in world.trail.said
    ]


def the(world: World, number: int = 0) -> tuple[Deed, Outcome | None]:
    _, deed, outcome = world.trail.said[number]
    return deed, outcome


async def test_a_mutating_call_is_on_record_before_and_after(world: World) -> None:
    request = sandbox_pb2.CreateRequest(
        request_id="create-one",
        sandbox=sandbox_pb2.Sandbox(display_name="Ada's box", freelancer="ada", labels={"team": "red"}),
    )

    await world.sandboxes.Create(request, metadata=world.metadata())

    assert said(world) == [
        ("intend", "SandboxService/Create", "", ""),
        ("conclude", "SandboxService/Create", "sandboxes/sbx-1", "OK"),
    ]
    deed, _ = the(world)
    assert (deed.client, deed.role, deed.actor, deed.request_id) == ("acme", "client_admin", "boss", "create-one")
    assert (deed.peer, deed.freelancer) == ("127.0.0.1", "ada")
    assert deed.texts["details"] == '{"sandbox":{"display_name":"Ada\'s box","labels":{"team":"red"}}}'


async def test_a_call_that_fails_is_on_record_with_why(world: World) -> None:
    request = sandbox_pb2.PauseRequest(request_id="pause-one", name="sandboxes/sbx-9")

    await refused(world.sandboxes.Pause(request, metadata=world.metadata()))
    world.manager.failure = RuntimeError("a bug")
    await refused(world.sandboxes.Pause(request, metadata=world.metadata()))
    assert said(world) == [
        (what, "SandboxService/Pause", "sandboxes/sbx-9", code)
        for code in ("NOT_FOUND", "INTERNAL")
        for what, code in (("intend", ""), ("conclude", code))
    ]


async def test_a_call_whose_time_is_over_is_on_record_as_such(tmp_path: Path) -> None:
    limits = ServerLimits(default_deadline=timedelta(seconds=0.1))
    request = sandbox_pb2.CreateRequest(request_id="create-one", sandbox=sandbox_pb2.Sandbox())

    async with a_world(tmp_path, limits=limits) as world:
        world.manager.hanging = True
        await refused(world.sandboxes.Create(request, metadata=world.metadata()))

        assert said(world)[1] == ("conclude", "SandboxService/Create", "", "DEADLINE_EXCEEDED")


async def test_a_call_that_only_reads_leaves_nothing_behind(world: World) -> None:
    await world.sandboxes.List(sandbox_pb2.ListRequest(), metadata=world.metadata())
    await refused(world.sandboxes.Pause(sandbox_pb2.PauseRequest(request_id="x"), metadata=world.metadata()))

    assert said(world) == []


async def test_nothing_is_done_that_cannot_be_put_on_record(world: World) -> None:
    world.trail.down = True
    request = sandbox_pb2.CreateRequest(request_id="create-one", sandbox=sandbox_pb2.Sandbox())

    error = await refused(world.sandboxes.Create(request, metadata=world.metadata()))

    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE")
    assert error.retry.retry_delay.ToTimedelta().total_seconds() > 0
    assert world.manager.sandboxes == {}
    await world.sandboxes.List(sandbox_pb2.ListRequest(), metadata=world.metadata())  # reading goes on


async def test_refusals_are_on_record_whoever_is_refused(world: World) -> None:
    world.manager.sandboxes[SandboxId("sbx-1")] = a_sandbox("sbx-1", client="other")
    get = sandbox_pb2.GetRequest(name="sandboxes/sbx-1")
    pause = sandbox_pb2.PauseRequest(request_id="pause-one", name="sandboxes/sbx-1")

    await refused(world.sandboxes.Get(get, metadata=(("authorization", "Bearer rubbish"),)))
    await refused(world.sandboxes.Get(get, metadata=world.metadata()))
    await refused(world.sandboxes.Pause(pause, metadata=world.metadata(role="auditor")))
    world.manager.failure = UnavailableError("The weather.")
    await refused(world.sandboxes.Get(get, metadata=world.metadata()))

    assert said(world) == [
        ("deny", "SandboxService/Get", "", "UNAUTHENTICATED"),
        ("deny", "SandboxService/Get", "sandboxes/sbx-1", "NOT_FOUND"),
        ("deny", "SandboxService/Pause", "sandboxes/sbx-1", "PERMISSION_DENIED"),
    ]
    nobody, _ = the(world)
    auditor, outcome = the(world, 2)
    assert (nobody.client, nobody.role, nobody.actor, nobody.peer) == ("", "anonymous", "", "127.0.0.1")
    assert (auditor.client, auditor.role, outcome.reason if outcome else "") == ("acme", "auditor", "ROLE_FORBIDDEN")


async def test_the_commands_of_a_stream_are_on_record_without_their_words(world: World) -> None:
    world.manager.sandboxes[SandboxId("sbx-1")] = a_sandbox("sbx-1")
    call = world.stream()
    opening = stream_pb2.Open(sandbox="sandboxes/sbx-1", title="Work")
    await call.write(stream_pb2.StreamRequest(request_id="open-one", open=opening))
    ready = (await next_event(call, "stream_ready")).stream_ready
    prompt = stream_pb2.Prompt(text=SECRET)
    await call.write(stream_pb2.StreamRequest(request_id="prompt-one", prompt=prompt))
    turn = (await next_event(call, "acknowledged")).acknowledged.turn
    await call.write(stream_pb2.StreamRequest(request_id="mode-one-1", set_mode=stream_pb2.SetMode(mode="yolo")))
    await next_event(call, "acknowledged")
    await call.write(stream_pb2.StreamRequest(ping=stream_pb2.Ping(payload="x")))
    await next_event(call, "pong")
    world.trail.down = True
    await call.write(stream_pb2.StreamRequest(request_id="mode-two-2", set_mode=stream_pb2.SetMode(mode="plan")))
    failed = (await next_event(call, "command_failed")).command_failed
    call.cancel()

    assert failed.reason == "AUDIT_UNAVAILABLE"
    assert said(world) == [
        ("intend", "SandboxService/Stream.open", "sandboxes/sbx-1", ""),
        ("conclude", "SandboxService/Stream.open", ready.session, "OK"),
        ("intend", "SandboxService/Stream.prompt", ready.session, ""),
        ("conclude", "SandboxService/Stream.prompt", turn, "OK"),
        ("intend", "SandboxService/Stream.set_mode", ready.session, ""),
        ("conclude", "SandboxService/Stream.set_mode", ready.session, "OK"),
    ]
    assert the(world, 4)[0].texts == {"details": '{"set_mode":{"mode":"yolo"}}'}
    assert SECRET not in repr(world.trail.said)


async def test_opening_a_foreign_session_is_a_refusal_and_watching_is_nothing(world: World) -> None:
    world.manager.sandboxes[SandboxId("sbx-1")] = a_sandbox("sbx-1")
    call = world.stream()
    await call.write(
        stream_pb2.StreamRequest(request_id="open-one", open=stream_pb2.Open(sandbox="sandboxes/sbx-1", title="Work"))
    )
    session = (await next_event(call, "stream_ready")).stream_ready.session
    await call.done_writing()
    await rest_of(call)
    world.trail.said.clear()

    watching = world.stream(role="auditor")
    await watching.write(
        stream_pb2.StreamRequest(open=stream_pb2.Open(sandbox="sandboxes/sbx-1", session=session, watch_only=True))
    )
    await next_event(watching, "stream_ready")
    await watching.write(stream_pb2.StreamRequest(request_id="prompt-one", prompt=stream_pb2.Prompt(text=SECRET)))
    await next_event(watching, "command_failed")
    watching.cancel()
    foreign = world.stream(client="other")
    await foreign.write(stream_pb2.StreamRequest(open=stream_pb2.Open(sandbox="sandboxes/sbx-1", session=session)))
    await refused(foreign)

    assert said(world) == [
        ("deny", "SandboxService/Stream.prompt", session, "PERMISSION_DENIED"),
        ("deny", "SandboxService/Stream", session, "NOT_FOUND"),
    ]


async def test_a_client_that_vanishes_leaves_an_outcome(world: World) -> None:
    world.manager.hanging = True
    request = sandbox_pb2.CreateRequest(request_id="create-one", sandbox=sandbox_pb2.Sandbox())

    call = world.sandboxes.Create(request, metadata=world.metadata())
    await eventually(lambda: len(world.trail.said) == 1)
    call.cancel()
    await asyncio.wait([asyncio.ensure_future(call.code())])
    await eventually(lambda: len(world.trail.said) == 2)

    assert said(world)[1][3] == "CANCELLED"


async def test_a_deleted_session_is_named_in_full(world: World) -> None:
    name = "sandboxes/sbx-1/sessions/ses-1"

    await refused(
        world.sessions.DeleteSession(
            session_pb2.DeleteSessionRequest(request_id="delete-1", name=name), metadata=world.metadata()
        )
    )

    assert [one[2] for one in said(world)] == [name, name]
