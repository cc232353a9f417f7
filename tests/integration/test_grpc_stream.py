import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sandboxd.api.grpc.server import ServerLimits
from sandboxd.manager.package_tidings import PackageTidings
from sandboxd.model.caller import Caller
from sandboxd.model.errors import ForbiddenError, UnavailableError
from sandboxd.model.events import Text
from sandboxd.model.ids import IncarnationId, SessionId
from sandboxd.model.package_history import Asked, KeptChange, Requester
from sandboxd.model.packages import (
    Package,
    PackageChange,
    PackageChangeKind,
    PackageKey,
    PackageManager,
    PackagePlace,
)
from sandboxd.v1 import sandbox_pb2
from sandboxd.v1 import stream_pb2 as pb
from sandboxd.v1.package_pb2 import PACKAGE_REQUESTER_SESSION
from tests.eventually import eventually
from tests.fakes.api import a_sandbox
from tests.fakes.manager import NOON
from tests.integration.api_world import World, a_world, next_event, refused, rest_of


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        made.manager.sandboxes[a_sandbox().id] = a_sandbox()
        yield made


def opening(request_id: str = "request-open", **fields: Any) -> pb.StreamRequest:
    return pb.StreamRequest(request_id=request_id, open=pb.Open(sandbox="sandboxes/sbx-1", **fields))


def prompt(text: str, request_id: str = "request-prompt") -> pb.StreamRequest:
    return pb.StreamRequest(request_id=request_id, prompt=pb.Prompt(text=text))


def kinds(messages: list[pb.StreamResponse]) -> list[str | None]:
    return [message.WhichOneof("event") for message in messages]


async def test_a_half_closed_stream_gets_its_turn_to_the_end_and_then_ok(world: World) -> None:
    call = world.stream()
    await call.write(opening(title="T"))
    await call.write(prompt("one two"))
    await call.done_writing()

    messages = await rest_of(call)

    events = [message for message in messages if message.sequence]
    assert messages[0].stream_ready == pb.StreamReady(
        session="sandboxes/sbx-1/sessions/ses-1", head_sequence=1, created=True
    )
    assert kinds(events) == ["session_opened", "turn_started", "text", "text", "turn_completed"]
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert [message.acknowledged.turn for message in messages if message.HasField("acknowledged")] == [
        "sandboxes/sbx-1/sessions/ses-1/turns/trn-1"
    ]
    assert world.hub.left == [("ses-1", True)]


async def test_a_half_closed_stream_waits_for_a_turn_that_is_still_open(world: World) -> None:
    call = world.stream()
    await call.write(opening())
    await call.write(prompt("wait"))
    await call.done_writing()
    await next_event(call, "turn_started")

    session = world.hub.conversations[next(iter(world.hub.conversations))]
    await asyncio.sleep(0.3)
    assert not call.done()
    watcher = world.stream()
    await watcher.write(opening(request_id="", session="sandboxes/sbx-1/sessions/ses-1"))
    await watcher.write(pb.StreamRequest(request_id="request-cancel", cancel_turn=pb.CancelTurn()))
    rest = await rest_of(call)
    watcher.cancel()

    assert session.session.open_turn is None
    assert kinds(rest)[-2:] == ["cancel_requested", "turn_completed"]


async def test_a_prompt_that_is_sent_again_after_a_cut_is_acknowledged_as_repeated_and_ends_too(world: World) -> None:
    for after, expected in ((0, False), (5, True)):
        call = world.stream()
        first = opening() if not after else opening("", session="sandboxes/sbx-1/sessions/ses-1", after_sequence=after)
        await call.write(first)
        await call.write(prompt("one two"))
        await call.done_writing()
        messages = await rest_of(call)

        acknowledged = next(message.acknowledged for message in messages if message.HasField("acknowledged"))
        assert acknowledged.repeated is expected
        assert acknowledged.turn.endswith("/turns/trn-1")
    assert world.hub.conversations[next(iter(world.hub.conversations))].session.turns == 1


async def test_a_client_that_vanishes_leaves_uncleanly(world: World) -> None:
    call = world.stream()
    await call.write(opening())
    await call.write(prompt("wait"))
    await next_event(call, "turn_started")

    call.cancel()

    await eventually(lambda: world.hub.left == [("ses-1", False)])


async def test_a_client_that_vanishes_in_a_torrent_of_events_is_no_error_of_ours(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    call = world.stream()
    await call.write(opening())
    await call.write(prompt("wait"))
    await next_event(call, "turn_started")
    (conversation,) = world.hub.conversations.values()

    async def pour() -> None:
        while not world.hub.left:
            await conversation.emit(Text(text="x" * 20_000))
            await asyncio.sleep(0)

    pouring = asyncio.create_task(pour())
    await next_event(call, "text")
    call.cancel()
    await asyncio.wait_for(pouring, timeout=10)

    await eventually(lambda: world.hub.left == [("ses-1", False)])
    lines = capsys.readouterr().out
    assert "failed_unexpectedly" not in lines
    assert await eventually(
        lambda: (
            world.registry.get_sample_value(
                "sandboxd_grpc_handled_total", {"method": "sandboxd.v1.SandboxService/Stream", "code": "CANCELLED"}
            )
            == 1
        )
    )


async def test_a_stream_that_says_nothing_is_ended(tmp_path: Path) -> None:
    async with a_world(tmp_path, limits=ServerLimits(first_request_within=timedelta(milliseconds=50))) as world:
        error = await refused(world.stream())

    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_catching_up_begins_after_the_last_sequence_that_was_seen(world: World) -> None:
    call = world.stream()
    await call.write(opening())
    await call.write(prompt("one two three"))
    await call.done_writing()
    await rest_of(call)

    again = world.stream()
    await again.write(opening("", session="sandboxes/sbx-1/sessions/ses-1", after_sequence=3))
    await again.done_writing()
    late = await rest_of(again)
    live = world.stream()
    await live.write(opening("", session="sandboxes/sbx-1/sessions/ses-1", after_sequence=-1))
    await live.done_writing()

    assert [message.sequence for message in late] == [0, 4, 5, 6]
    assert late[0].stream_ready.head_sequence == 6
    assert kinds(await rest_of(live)) == ["stream_ready"]


async def test_a_refused_command_is_an_answer_and_the_stream_goes_on(world: World) -> None:
    call = world.stream()
    await call.write(opening())
    await call.write(prompt("wait"))
    await next_event(call, "turn_started")

    await call.write(prompt("another", request_id="request-2"))
    failed = (await next_event(call, "command_failed")).command_failed
    await call.write(pb.StreamRequest(ping=pb.Ping(payload="still there?")))
    pong = (await next_event(call, "pong")).pong
    call.cancel()

    assert (failed.request_id, failed.reason) == ("request-2", "TURN_IN_PROGRESS")
    assert failed.metadata["turn"] == "trn-1"
    assert pong.payload == "still there?"


async def test_a_command_that_breaks_rules_is_answered_with_all_violations(world: World) -> None:
    call = world.stream()
    await call.write(opening())
    bad = pb.StreamRequest(
        request_id="short",
        prompt=pb.Prompt(attachments=[pb.Attachment(file_name="a/b", mime_type="nonsense", data=b"")]),
    )

    await call.write(bad)
    failed = (await next_event(call, "command_failed")).command_failed
    call.cancel()

    assert failed.reason == "REQUEST_INVALID"
    assert {one.field for one in failed.violations} == {
        "request_id",
        "prompt.attachments[0].file_name",
        "prompt.attachments[0].mime_type",
        "prompt.attachments[0].data",
    }


async def test_a_mutating_command_without_a_request_id_is_refused(world: World) -> None:
    call = world.stream()
    await call.write(opening())

    await call.write(pb.StreamRequest(set_mode=pb.SetMode(mode="yolo")))
    failed = (await next_event(call, "command_failed")).command_failed
    call.cancel()

    assert [one.field for one in failed.violations] == ["request_id"]


async def test_attachments_have_a_limit_together(world: World) -> None:
    call = world.stream()
    await call.write(opening())
    whole = pb.Attachment(file_name="a", mime_type="image/png", data=b"x" * (5 << 20))

    await call.write(pb.StreamRequest(request_id="request-2", prompt=pb.Prompt(attachments=[whole] * 3)))
    failed = (await next_event(call, "command_failed")).command_failed
    call.cancel()

    assert [one.field for one in failed.violations] == ["prompt.attachments"]


async def test_a_second_open_is_refused_and_a_watcher_gives_no_commands(world: World) -> None:
    call = world.stream()
    await call.write(opening())
    await next_event(call, "stream_ready")
    await call.write(opening("request-3"))
    second = (await next_event(call, "command_failed")).command_failed
    watcher = world.stream()
    await watcher.write(opening("", session="sandboxes/sbx-1/sessions/ses-1", watch_only=True))
    await watcher.write(prompt("hello"))
    refused_prompt = (await next_event(watcher, "command_failed")).command_failed
    call.cancel()
    watcher.cancel()

    assert [one.field for one in second.violations] == ["open"]
    assert refused_prompt.reason == "WATCH_ONLY"


async def test_a_bug_in_a_command_is_an_answer_without_its_text(world: World) -> None:
    call = world.stream()
    await call.write(opening())
    world.hub.command_failure = ZeroDivisionError("the canary of the inside")

    await call.write(prompt("hello"))
    failed = (await next_event(call, "command_failed")).command_failed
    call.cancel()

    assert failed.reason == "INTERNAL"
    assert "canary" not in failed.message
    assert failed.metadata["error_id"].startswith("err-")


@pytest.mark.parametrize(
    ("first", "fields"),
    [
        (prompt("hello"), ["command"]),
        (pb.StreamRequest(ping=pb.Ping()), ["command"]),
        (pb.StreamRequest(), ["command"]),
        (pb.StreamRequest(open=pb.Open(sandbox="no", session="no", after_sequence=-2)),
         ["open.after_sequence", "open.sandbox", "open.session", "open.session"]),
        (opening(""), ["request_id"]),
        (opening(session="sandboxes/sbx-2/sessions/ses-1"), ["open.session"]),
    ],
    ids=["prompt", "ping", "empty", "rules", "no id", "torn names"],
)  # fmt: skip
async def test_a_bad_first_message_ends_the_call(world: World, first: pb.StreamRequest, fields: list[str]) -> None:
    call = world.stream()
    await call.write(first)

    error = await refused(call)

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(error.fields) == fields


async def test_a_stream_without_any_message_is_refused(world: World) -> None:
    call = world.stream()
    await call.done_writing()

    assert (await refused(call)).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_session_of_another_client_is_not_found(world: World) -> None:
    call = world.stream(client="other")
    await call.write(opening())

    assert (await refused(call)).reason == "SANDBOX_NOT_FOUND"


async def test_more_streams_than_a_client_may_have_are_refused_and_slots_come_back(tmp_path: Path) -> None:
    async with a_world(tmp_path, limits=ServerLimits(max_streams_per_client=1)) as world:
        world.manager.sandboxes[a_sandbox().id] = a_sandbox()
        first = world.stream()
        await first.write(opening())
        await next_event(first, "stream_ready")

        second = world.stream()
        error = await refused(second)
        first.cancel()
        await eventually(lambda: bool(world.hub.left))
        third = world.stream()
        await third.write(opening("request-3"))
        ready = await next_event(third, "stream_ready")
        third.cancel()

    assert (error.code, error.quota.violations[0].subject) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "clients/acme")
    assert error.retry.retry_delay.seconds == 1
    assert ready.stream_ready.created


async def test_a_drain_tells_the_streams_and_cancels_no_turn(world: World) -> None:
    call = world.stream()
    await call.write(opening())
    await call.write(prompt("wait"))
    await next_event(call, "turn_started")
    health: Any = health_pb2_grpc.HealthStub(world.channel)
    watching = health.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING

    draining = asyncio.create_task(world.server.drain(grace=timedelta(seconds=5)))
    status = (await watching.read()).status
    error = await refused(call)
    watching.cancel()
    await draining

    assert status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    assert timedelta() < error.retry.retry_delay.ToTimedelta() < timedelta(seconds=1.2)
    assert world.hub.left == [("ses-1", True)]


async def test_bytes_that_are_no_message_are_refused_and_the_stream_goes_on(world: World) -> None:
    raw: Any = world.channel.stream_stream("/sandboxd.v1.SandboxService/Stream")(metadata=world.metadata())
    await raw.write(opening().SerializeToString())
    for _ in range(100):
        await raw.write(b"\xff\xff\xff")
    await raw.done_writing()

    answers = [pb.StreamResponse.FromString(data) async for data in raw]

    assert [one.command_failed.reason for one in answers if one.HasField("command_failed")] == ["REQUEST_INVALID"] * 100
    assert await raw.code() is grpc.StatusCode.OK


async def test_thousands_of_bad_commands_are_answered_one_by_one(world: World) -> None:
    call = world.stream()
    await call.write(opening())
    await next_event(call, "stream_ready")
    bad = pb.StreamRequest(request_id="x" * 200)

    async def send() -> None:
        for _ in range(2_000):
            await call.write(bad)
        await call.done_writing()

    sending = asyncio.create_task(send())
    failures = [message for message in await rest_of(call) if message.HasField("command_failed")]
    await sending

    assert len(failures) == 2_000


# ------------------------------------------------------------------------------------------------ who must go


async def test_a_stream_is_told_that_its_token_has_expired_and_ends_after_a_grace_while_the_turn_goes_on(
    tmp_path: Path,
) -> None:
    limits = ServerLimits(expired_grace=timedelta(seconds=1))
    async with a_world(tmp_path, limits=limits) as world:
        world.manager.sandboxes[a_sandbox().id] = a_sandbox()
        call = world.stream(exp=int(time.time()) - 5)  # within what clocks may differ by
        await call.write(opening(cancel_on_disconnect=True))
        await call.write(prompt("wait"))

        notice = await next_event(call, "notice")
        error = await refused(call)

        assert (notice.sequence, notice.notice.code) == (0, "TOKEN_EXPIRED")
        assert "fresh one" in notice.notice.message
        assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")
        assert world.hub.left == [("ses-1", True)]
        assert world.hub.conversations[SessionId("ses-1")].session.open_turn is not None


async def test_a_watch_ends_when_its_token_expired_a_grace_ago(tmp_path: Path) -> None:
    async with a_world(tmp_path, limits=ServerLimits(expired_grace=timedelta(milliseconds=100))) as world:
        call = world.sandboxes.Watch(
            sandbox_pb2.WatchRequest(), metadata=world.metadata(exp=int(time.time()) - 5, client="other")
        )

        error = await refused(call)

    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


class Suspensions:
    """A standing that can be lost."""

    def __init__(self) -> None:
        self.suspended = False
        self.away = False

    async def check(self, caller: Caller) -> None:
        if self.away:
            raise UnavailableError("The database is away.")
        if self.suspended:
            raise SuspendedError(f"The client {caller.client} is suspended.")

    async def wait(self, caller: Caller, *, timeout: timedelta) -> None:
        await asyncio.sleep(timeout.total_seconds())


class SuspendedError(ForbiddenError):
    reason = "CLIENT_SUSPENDED"


async def test_a_suspended_client_is_refused_and_its_open_streams_end(tmp_path: Path) -> None:
    standing = Suspensions()
    async with a_world(
        tmp_path, standing=standing, limits=ServerLimits(standing_every=timedelta(seconds=0.05))
    ) as world:
        world.manager.sandboxes[a_sandbox().id] = a_sandbox()
        call = world.stream()
        await call.write(opening())
        await next_event(call, "session_opened")
        watch = world.sandboxes.Watch(sandbox_pb2.WatchRequest(), metadata=world.metadata())
        await watch.read()
        # What cannot be told ends nothing.
        standing.away = True
        await asyncio.sleep(0.3)
        await call.write(pb.StreamRequest(ping=pb.Ping(payload="x")))
        await next_event(call, "pong")

        standing.suspended, standing.away = True, False
        errors = [
            await refused(call),
            await refused(watch),
            await refused(world.sandboxes.List(sandbox_pb2.ListRequest(), metadata=world.metadata())),
        ]

    assert {(error.code, error.reason) for error in errors} == {(grpc.StatusCode.PERMISSION_DENIED, "CLIENT_SUSPENDED")}


async def test_changes_of_packages_come_beside_the_log_and_say_how_many_were_left_out(world: World) -> None:
    key = PackageKey(manager=PackageManager.DPKG, name="tree", directory="/var/lib/dpkg")
    package = Package(key=key, version="2", place=PackagePlace.ROOT)

    def changes(*numbers: int) -> list[KeptChange]:
        return [
            KeptChange(
                number=number,
                incarnation=IncarnationId("inc-1"),
                change=PackageChange(sequence=number, kind=PackageChangeKind.INSTALLED, package=package, time=NOON),
                kept_time=NOON,
                asked=Asked(requester=Requester.SESSION, session=SessionId("ses-1")),
            )
            for number in numbers
        ]

    call = world.stream()
    await call.write(opening())
    world.manager.tidings.put_nowait(PackageTidings(changes=changes(8, 9), after_number=5, last_number=9))
    # The one in between was let fall: this stream is slow.
    world.manager.tidings.put_nowait(PackageTidings(changes=changes(13), after_number=11, last_number=13))
    told: list[pb.StreamResponse] = []
    while len(told) < 2:
        message = await call.read()
        if message.HasField("packages_changed"):
            told.append(message)
    await call.done_writing()
    await rest_of(call)

    assert [one.sequence for one in told] == [0, 0]
    assert [[change.number for change in one.packages_changed.changes] for one in told] == [[8, 9], [13]]
    assert [one.packages_changed.earlier for one in told] == [2, 3]
    change = told[0].packages_changed.changes[0]
    assert (change.requester, change.session) == (PACKAGE_REQUESTER_SESSION, "sandboxes/sbx-1/sessions/ses-1")
    assert change.package.unsaved
