"""The client against a service that loses answers, cuts streams and goes away."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from typing_extensions import override

from sandboxd.ctl.backoff import RetryPolicy
from sandboxd.ctl.client import ApiError, Client, Link, SessionStream, connect
from sandboxd.v1 import sandbox_pb2, stream_pb2
from tests.eventually import eventually
from tests.fakes.platform_server import TOKEN, FakePlatform

HASTY = RetryPolicy(first=timedelta(milliseconds=10), longest=timedelta(milliseconds=50), budget=timedelta(seconds=3))
BOX = "sbx-00000000000000000000000001"


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with FakePlatform().served() as platform:
        platform.given_sandbox(BOX, display_name="demo")
        yield platform


@pytest.fixture
async def client(platform: FakePlatform) -> AsyncIterator[Client]:
    async with connect(platform.address, token=TOKEN, retry=HASTY, reconnect=HASTY) as client:
        yield client


async def turn(stream: SessionStream, text: str = "hello") -> list[stream_pb2.StreamResponse]:
    """Run one turn and return everything that was yielded."""
    seen = []
    stream.prompt(text)
    async for event in stream:
        seen.append(event)
        if event.HasField("turn_completed"):
            break
    return seen


def numbers(events: list[stream_pb2.StreamResponse]) -> list[int]:
    return [event.sequence for event in events if event.sequence]


def answer(events: list[stream_pb2.StreamResponse]) -> str:
    return "".join(event.text.text for event in events)


async def test_a_create_whose_answer_is_lost_is_repeated_with_its_request_id_and_makes_one_sandbox(
    platform: FakePlatform, client: Client
) -> None:
    platform.lose_answers = 2

    sandbox = await client.create(display_name="once")

    requests = [request for method, request in platform.calls if method == "Create"]
    assert len(requests) == 3
    assert all(request == requests[0] for request in requests)
    assert [each.name for each in platform.sandboxes.values() if each.display_name == "once"] == [sandbox.name]


async def test_a_service_that_stays_away_is_told_when_patience_is_over() -> None:
    away = RetryPolicy(first=timedelta(milliseconds=1), budget=timedelta(milliseconds=50))
    async with connect("127.0.0.1:1", token=TOKEN, retry=away) as client:
        with pytest.raises(ApiError) as caught:
            await client.get("sandboxes/a")

    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_an_error_brings_its_reason_and_its_facts(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        await client.get("sandboxes/none")

    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SANDBOX_NOT_FOUND")
    assert error.metadata == {"sandbox": "sandboxes/none"}
    assert error.message == "Sandbox sandboxes/none does not exist."


async def test_a_token_that_changes_is_asked_for_before_each_call(platform: FakePlatform) -> None:
    tokens = iter(["old", TOKEN])
    async with connect(platform.address, token=lambda: next(tokens)) as client:
        with pytest.raises(ApiError) as caught:
            await client.get(f"sandboxes/{BOX}")

        assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
        assert (await client.get(f"sandboxes/{BOX}")).display_name == "demo"


async def test_lists_are_read_over_all_pages(platform: FakePlatform, client: Client) -> None:
    for number in range(2, 8):
        platform.given_sandbox(f"sbx-{number:026d}")

    found = [each.name async for each in client.sandboxes()]

    assert found == [f"sandboxes/sbx-{number:026d}" for number in range(1, 8)]


async def test_a_turn_yields_every_event_once_and_in_order(client: Client) -> None:
    async with client.stream(f"sandboxes/{BOX}") as stream:
        events = await turn(stream)

    assert numbers(events) == [*range(1, len(numbers(events)) + 1)]
    assert answer(events) == "Echo: hello"
    assert events[0].stream_ready.created


@pytest.mark.parametrize("cut", range(11))
async def test_a_stream_that_is_cut_anywhere_goes_on_without_loss_or_repetition(
    platform: FakePlatform, client: Client, cut: int
) -> None:
    platform.cut_after = [cut]

    async with client.stream(f"sandboxes/{BOX}") as stream:
        events = await turn(stream)

    assert len(platform.opens) >= 2
    assert numbers(events) == [*range(1, len(numbers(events)) + 1)]
    assert answer(events) == "Echo: hello"
    assert platform.prompts == ["hello"]
    assert len(platform.sessions) == 1


async def test_a_stream_that_is_cut_after_every_response_still_ends_its_turn(
    platform: FakePlatform, client: Client
) -> None:
    platform.cut_after = [2] * 20

    async with client.stream(f"sandboxes/{BOX}") as stream:
        events = await turn(stream)

    assert numbers(events) == [*range(1, len(numbers(events)) + 1)]
    assert platform.prompts == ["hello"]


async def test_a_prompt_whose_acknowledgement_is_lost_is_sent_again_and_paid_once(
    platform: FakePlatform, client: Client
) -> None:
    platform.swallow_acks = 1

    async with client.stream(f"sandboxes/{BOX}") as stream:
        events = await turn(stream)
        while not any(event.HasField("acknowledged") for event in events):
            events.append(await anext(stream))  # it may come after the last event of the turn

    acknowledged = [event.acknowledged for event in events if event.HasField("acknowledged")]
    assert [each.repeated for each in acknowledged] == [True]
    assert platform.prompts == ["hello"]


async def test_events_that_come_again_after_a_cut_are_not_shown_again(platform: FakePlatform, client: Client) -> None:
    platform.cut_after, platform.repeat_events = [6], True

    async with client.stream(f"sandboxes/{BOX}") as stream:
        events = await turn(stream)

    assert numbers(events) == [*range(1, len(numbers(events)) + 1)]


async def test_an_event_that_was_left_out_is_fetched(platform: FakePlatform, client: Client) -> None:
    platform.leave_out = {5}

    async with client.stream(f"sandboxes/{BOX}") as stream:
        events = await turn(stream)

    assert numbers(events) == [*range(1, len(numbers(events)) + 1)]


async def test_a_restart_of_the_service_in_a_turn_is_survived_and_told(platform: FakePlatform, client: Client) -> None:
    links: list[Link] = []

    async with client.stream(f"sandboxes/{BOX}", on_link=links.append) as stream:
        stream.prompt("slow")
        events = []
        async for event in stream:
            events.append(event)
            if event.text.text:
                platform.stop()
                platform.start()
                stream.cancel()
            if event.HasField("turn_completed"):
                break

    assert links == [Link.LOST, Link.BACK]
    assert numbers(events) == [*range(1, len(numbers(events)) + 1)]
    assert events[-1].turn_completed.stop_reason == stream_pb2.STOP_REASON_CANCELLED


async def test_from_now_on_means_from_the_first_connection_on_also_after_a_cut(
    platform: FakePlatform, client: Client
) -> None:
    session = platform.given_session(BOX, "ses-1")
    platform.say(session, notice=stream_pb2.Notice(code="OLD"))
    platform.cut_after = [1]

    async with client.stream(f"sandboxes/{BOX}", session=session.session.name, after_sequence=-1) as stream:
        first = await anext(stream)
        platform.say(session, notice=stream_pb2.Notice(code="NEW"))
        second = await anext(stream)

    assert first.HasField("stream_ready")
    assert second.notice.code == "NEW"


async def test_a_refused_opening_is_an_error_at_once(platform: FakePlatform, client: Client) -> None:
    platform.given_sandbox("sbx-p", state="PAUSED")

    async with client.stream("sandboxes/sbx-p") as stream:
        with pytest.raises(ApiError) as caught:
            await anext(stream)

    assert caught.value.reason == "SANDBOX_PAUSED"
    assert len(platform.opens) == 1


async def test_a_refusal_that_overtakes_the_first_write_is_told_with_its_reason(
    platform: FakePlatform,
) -> None:
    async with connect(platform.address, token="of nobody", retry=HASTY, reconnect=HASTY) as client:
        # Its opening is written when the refusal has arrived in gRPC's core and the loop has not heard of it yet.
        opening = stream_pb2.Open(sandbox=f"sandboxes/{BOX}")
        async with _LateStream(client.connection, opening, retry=HASTY, wait=lambda: _refused(platform)) as stream:
            with pytest.raises(ApiError) as caught:
                await anext(stream)

    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert len(platform.calls) == 2, "the first refusal was not lost"


class _LateStream(SessionStream):
    """Its first call's first request comes late, and keeps the loop from hearing anything before."""

    def __init__(self, *arguments: Any, wait: Callable[[], None], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._wait: Callable[[], None] | None = wait

    @override
    async def _requests(self) -> AsyncIterator[stream_pb2.StreamRequest]:
        wait, self._wait = self._wait, None
        if wait is not None and self._call is not None:
            await self._call.wait_for_connection()
            wait()
        async for request in super()._requests():
            yield request


def _refused(platform: FakePlatform) -> None:
    until = time.monotonic() + 10
    while not platform.calls and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)  # it is on its way over loopback, to a thread of gRPC's that nobody can ask


async def test_a_stream_whose_service_stays_away_gives_up(platform: FakePlatform) -> None:
    brief = RetryPolicy(first=timedelta(milliseconds=5), budget=timedelta(milliseconds=100))
    async with (
        connect(platform.address, token=TOKEN, retry=brief, reconnect=brief) as client,
        client.stream(f"sandboxes/{BOX}", after_sequence=-1) as stream,
    ):
        await anext(stream)
        platform.stop()

        with pytest.raises(ApiError) as caught:
            await anext(stream)

    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_wait_that_is_cancelled_loses_no_event(platform: FakePlatform, client: Client) -> None:
    session = platform.given_session(BOX, "ses-1")
    async with client.stream(f"sandboxes/{BOX}", session=session.session.name, after_sequence=1) as stream:
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.wait({waiting}, timeout=0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

        platform.say(session, notice=stream_pb2.Notice(code="HERE"))
        event = await anext(stream)

    assert event.notice.code == "HERE"


async def test_silence_is_ended_by_pings_and_their_pongs_are_not_shown(platform: FakePlatform) -> None:
    async with connect(platform.address, token=TOKEN) as client:
        opening = stream_pb2.Open(sandbox=f"sandboxes/{BOX}")
        async with SessionStream(client.connection, opening, ping_seconds=0.02, silence_seconds=5) as stream:
            seen = [await anext(stream) for _ in range(3)]
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.wait({waiting}, timeout=0.2)
            assert not waiting.done()
            stream.ping("mine")
            pong = await waiting

    assert [each.WhichOneof("event") for each in seen] == ["stream_ready", "session_opened", "session_ready"]
    assert pong.pong.payload == "mine"


async def test_a_watch_after_a_cut_tells_only_what_changed(platform: FakePlatform, client: Client) -> None:
    platform.given_sandbox("sbx-b")
    changes: list[tuple[str, str]] = []

    async def follow() -> None:
        async for each in client.watch():
            kind = sandbox_pb2.WatchResponse.Change.Name(each.change).removeprefix("CHANGE_")
            changes.append((kind, each.sandbox.name.removeprefix("sandboxes/")))

    task = asyncio.create_task(follow())
    await eventually(lambda: ("SYNCED", "") in changes)
    platform.stop()
    del platform.sandboxes["sandboxes/sbx-b"]
    platform.given_sandbox("sbx-c")
    platform.start()
    await eventually(lambda: ("REMOVED", "sbx-b") in changes)
    task.cancel()

    assert changes == [
        ("PRESENT", BOX),
        ("PRESENT", "sbx-b"),
        ("SYNCED", ""),
        ("UPDATED", "sbx-c"),
        ("REMOVED", "sbx-b"),
    ]
