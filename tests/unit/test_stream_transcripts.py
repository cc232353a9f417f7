"""Recordings of the real CLI: what they mean, and that no cut and no restart changes it."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.model.events import Unparsed
from sandboxd.stream.codec import decode_body
from sandboxd.stream.headless.machine import HeadlessDialect
from sandboxd.stream.headless.observer import HeadlessObserver
from sandboxd.stream.replay import replay
from tests.recordings import ACP, OWN, ROOT, STREAM_JSON, Play, byte_by_byte, play, segments, summary, whole

EXPECTED = json.loads((ROOT / "expected.json").read_text())
acp = pytest.mark.parametrize("path", ACP, ids=lambda path: path.stem)
stream_json = pytest.mark.parametrize("path", STREAM_JSON, ids=lambda path: path.name.partition(".")[0])


def test_every_recording_has_its_expectation() -> None:
    names = {f"{path.parent.name}/{path.name}" for path in (*ACP, *STREAM_JSON, *OWN)}

    assert names == set(EXPECTED)
    assert len(names) > 40


@acp
def test_an_acp_recording_means_what_is_written_down(path: Path) -> None:
    replayed = [(event["session"], event["turn"], event) for event in replay([path.read_bytes()])]

    assert summary(play(path).events) == EXPECTED[f"acp/{path.name}"]
    assert summary(replayed) == EXPECTED[f"acp/{path.name}"]


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_a_recording_of_our_own_means_what_is_written_down_in_any_cut(path: Path) -> None:
    data = path.read_bytes()

    events = list(replay([data]))

    assert summary((event["session"], event["turn"], event) for event in events) == EXPECTED[f"own/{path.name}"]
    assert list(replay(data[at : at + 4099] for at in range(0, len(data), 4099))) == events
    assert [event["why"] for event in events if event["kind"] == "unparsed"] in ([], ["SENT_NOT_JSON"])
    if b"session/load" not in data:
        chunks = data.count(b"agent_message_chunk") - data.count(b"[MODE_UPDATE]")
        assert [event["kind"] for event in events].count("text") == chunks


@stream_json
def test_a_headless_recording_means_what_is_written_down(path: Path) -> None:
    events = [(event["session"], event["turn"], event) for event in replay([path.read_bytes()])]

    assert summary(events) == EXPECTED[f"stream-json/{path.name}"]


@acp
def test_every_update_of_a_turn_becomes_an_event_and_nothing_is_unparsed(path: Path) -> None:
    updates = 0
    loading = False
    for line in path.read_text().splitlines():
        message = json.loads(line)["msg"] or {}
        if message.get("method") in ("session/load", "session/prompt"):
            loading = message["method"] == "session/load"
        if message.get("method") == "session/update" and not loading:
            said = message["params"]["update"].get("content")
            updates += not (isinstance(said, dict) and said["text"].startswith("[MODE_UPDATE] "))

    events = [event for _, _, event in play(path).events]

    kinds = [event["kind"] for event in events]
    made = sum(kinds.count(kind) for kind in ("text", "thought", "tool_call", "tool_output", "commands_available"))
    begun_by_us = kinds.count("permission_request") + sum(
        event["kind"] == "tool_output" and event["status"] == "rejected" for event in events
    )
    failed_unannounced = sum(event["kind"] == "tool_output" and event["status"] == "failed" for event in events)
    replayed_commands = sum('"session/load"' in line for line in path.read_text().splitlines()) and kinds.count(
        "commands_available"
    )
    assert made - begun_by_us - failed_unannounced - replayed_commands == updates
    assert "unparsed" not in kinds


@acp
def test_every_prompt_has_one_start_and_one_end_and_every_call_one_output(path: Path) -> None:
    prompts = sum('"session/prompt"' in line for line in path.read_text().splitlines())

    events = play(path).events

    started = [str(turn) for _, turn, event in events if event["kind"] == "turn_started"]
    completed = [str(turn) for _, turn, event in events if event["kind"] == "turn_completed"]
    called = [event["call"] for _, _, event in events if event["kind"] == "tool_call"]
    returned = [event["call"] for _, _, event in events if event["kind"] == "tool_output"]
    assert len(started) == prompts
    assert sorted(started) == sorted(completed)
    assert len(set(called)) == len(called)
    assert sorted(called) == sorted(returned)


@acp
def test_an_acp_recording_fed_byte_by_byte_gives_the_same(path: Path) -> None:
    once = play(path)

    piecemeal = play(path, byte_by_byte)

    assert piecemeal.said == once.said
    assert piecemeal.machine.snapshot() == once.machine.snapshot()


@pytest.mark.parametrize("path", [path for path in ACP if path.stem in ("29-acp-kill-2", "33-acp-auth-none")])
def test_a_short_recording_cut_at_every_offset_gives_the_same(path: Path) -> None:
    once = play(path)
    longest = max(len(output) for _, output, _ in segments(path))

    for at in range(1, longest):
        twice = play(path, lambda data, at=at: (data[:at], data[at:]))  # type: ignore[misc]  # mypy: lambda's default

        assert twice.said == once.said
        assert twice.machine.snapshot() == once.machine.snapshot()


@acp
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.lists(st.integers(min_value=1, max_value=5000), min_size=1, max_size=20))
def test_an_acp_recording_cut_anywhere_gives_the_same(path: Path, seed: list[int]) -> None:
    def cut(data: bytes) -> list[bytes]:
        pieces = []
        for size in seed:
            pieces.append(data[:size])
            data = data[size:]
        return [*pieces, data]

    assert play(path, cut).said == play(path, whole).said


@acp
def test_a_service_that_dies_between_any_two_messages_goes_on_as_if_nothing_had_been(path: Path) -> None:
    once = play(path)

    interrupted = play(path, restarts=True)

    assert interrupted.said == once.said
    assert interrupted.machine.snapshot() == once.machine.snapshot()


@acp
def test_a_service_that_dies_after_any_line_of_output_goes_on_as_if_nothing_had_been(path: Path) -> None:
    once = play(path)
    died = Play()

    for client, output, end in segments(path):
        for number, line in enumerate(output.splitlines(keepends=True) or [b""]):
            died.segment(client if number == 0 else [], line, whole, end=False)
            died.restart()
        died.segment([], b"", whole, end=end)

    assert died.said == once.said


@acp
def test_the_consumed_offset_is_where_a_restart_continues(path: Path) -> None:
    once = play(path)
    died = Play()

    for client, output, end in segments(path):
        before = died.machine.consumed
        half = len(output) // 2
        died.segment(client, output[:half], whole, end=False)
        died.restart()
        died.segment([], output[died.machine.consumed - before :], whole, end=end)

    assert died.said == once.said
    assert died.machine.snapshot() == once.machine.snapshot()


@stream_json
def test_a_headless_recording_fed_byte_by_byte_gives_the_same(path: Path) -> None:
    data = path.read_bytes()

    assert list(replay(byte_by_byte(data))) == list(replay([data]))


@stream_json
def test_a_headless_machine_restored_after_any_line_goes_on_as_if_nothing_had_been(path: Path) -> None:
    def run(*, restarts: bool) -> list[object]:
        machine = HeadlessDialect()
        events: list[object] = []
        for number, line in enumerate(path.read_bytes().splitlines()):
            if number == 0:
                HeadlessObserver(machine).line(line)
            else:
                machine.feed(line + b"\n")
            events += machine.take().events
            if restarts:
                machine = HeadlessDialect.restore(json.loads(json.dumps(machine.snapshot())))
        machine.exited(exit_code=0, signal=None)
        return [*events, *machine.take().events]

    assert run(restarts=True) == run(restarts=False)


def test_what_was_recorded_can_be_read_back_from_its_json() -> None:
    for path in ACP:
        for _, _, event in play(path).events:
            assert not isinstance(decode_body(event), Unparsed)
