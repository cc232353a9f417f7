"""`python -m sandboxd.stream replay`: tolerant of what recorders do, and of what happens to files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxd.stream.replay import replay
from tests.recordings import ACP, ROOT


def record(dir_: str, msg: Any, **more: Any) -> bytes:
    return json.dumps({"dir": dir_, "msg": msg, **more}).encode() + b"\n"


def prompt(id_: Any, text: str = "hi", session: str = "s1") -> dict[str, Any]:
    params = {"sessionId": session, "prompt": [{"type": "text", "text": text}]}
    return {"jsonrpc": "2.0", "id": id_, "method": "session/prompt", "params": params}


def chunk(text: str, session: str = "s1", kind: str = "agent_message_chunk") -> dict[str, Any]:
    update = {"sessionUpdate": kind, "content": {"type": "text", "text": text}}
    return {"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": session, "update": update}}


def end(id_: Any, stop: str = "end_turn") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id_, "result": {"stopReason": stop}}


def kinds(*records: bytes) -> list[str]:
    return [event["kind"] for event in replay([b"".join(records)])]


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "sandboxd.stream", "replay", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"})


def test_the_command_prints_json_lines_and_ends_with_0() -> None:
    done = run(str(ROOT / "acp" / "21-acp-permissions.jsonl"))

    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, b"")
    assert {"t", "session", "turn", "kind"} <= set(events[0])
    assert [event["kind"] for event in events].count("turn_completed") == 15


def test_the_command_reads_stdin_and_filters_by_session() -> None:
    data = (ROOT / "acp" / "22-acp-cancel.jsonl").read_bytes()

    done = run("-", "--session", "7087", stdin=data)

    sessions = {json.loads(line)["session"] for line in done.stdout.splitlines()}
    assert sessions == {"7087d1e9-8072-4bde-bbfb-cc3a33946816"}


@pytest.mark.parametrize("file", ["/nowhere/at/all", "/"])
def test_a_file_that_cannot_be_read_ends_with_2(file: str) -> None:
    done = run(file)

    assert done.returncode == 2
    assert b"Cannot read" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    file = ROOT / "acp" / "63-acp-default-asks.jsonl"
    pipe = f"{sys.executable} -m sandboxd.stream replay {file} | head -n 1"

    done = subprocess.run(["/bin/sh", "-c", pipe], capture_output=True, check=False)

    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("format_", ["auto", "acp", "stream-json"])
@pytest.mark.parametrize("data", [b"", b"\n\n", b"\x00\xff" * 5000, b"{", b"null\n[]\n", bytes(range(256)) * 20])
def test_garbage_is_no_failure_in_any_format(format_: str, data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "garbage"
    file.write_bytes(data)

    done = run(str(file), "--format", format_)

    assert done.returncode == 0
    assert {json.loads(line)["kind"] for line in done.stdout.splitlines()} <= {"unparsed"}


def test_a_prompt_without_an_answer_is_interrupted_at_the_end() -> None:
    assert kinds(record("c2a", prompt(0)), record("a2c", chunk("x"))) == [
        "turn_started",
        "text",
        "error",
        "turn_completed",
    ]


def test_broken_lines_are_kept_and_the_rest_goes_on() -> None:
    records = [
        record("c2a", prompt("a")),
        b'{"dir": "a2c", "msg": {"cut\n',
        b"noise\n",
        record("a2c", chunk("x")),
        record("a2c", end("a")),
    ]

    assert kinds(*records) == ["turn_started", "unparsed", "unparsed", "text", "turn_completed"]


def test_messages_may_be_texts_or_have_another_name() -> None:
    records = [
        json.dumps({"dir": "c2a", "raw": json.dumps(prompt(1))}).encode() + b"\n",
        json.dumps({"dir": "a2c", "line": json.dumps(chunk("x")) + "\n"}).encode() + b"\n",
        json.dumps({"dir": "a2c", "text": "no json at all"}).encode() + b"\n",
        json.dumps({"dir": "a2c", "msg": "bad \udcff byte"}).encode() + b"\n",
        json.dumps({"dir": "c2a", "raw": "this is not json"}).encode() + b"\n",
        json.dumps({"dir": "a2c", "msg": json.dumps(end(1))}).encode(),
    ]

    events = list(replay([b"".join(records)]))

    assert [event["kind"] for event in events] == [
        "turn_started",
        "text",
        "unparsed",
        "unparsed",
        "unparsed",
        "turn_completed",
    ]
    assert [event["why"] for event in events if event["kind"] == "unparsed"] == [
        "NOT_JSON",
        "NOT_UTF8",
        "SENT_NOT_JSON",
    ]


def test_raw_json_rpc_lines_are_told_apart_by_their_methods() -> None:
    lines = [json.dumps(message).encode() + b"\n" for message in (prompt(1), chunk("x"), end(1))]

    assert kinds(*lines) == ["turn_started", "text", "turn_completed"]


def test_raw_output_alone_has_its_sessions_and_turns() -> None:
    greeting = {"jsonrpc": "2.0", "id": 0, "result": {"agentInfo": {"version": "0.61.0"}}}
    made = {"jsonrpc": "2.0", "id": 1, "result": {"sessionId": "s1", "modes": {"currentModeId": "default"}}}
    refused = {"jsonrpc": "2.0", "id": 5, "error": {"code": 402, "message": "spent"}}
    lines = [greeting, made, chunk("x"), end(2), chunk("of another", "s2"), refused, chunk("cut")]

    events = list(replay([b"".join(json.dumps(line).encode() + b"\n" for line in lines)]))

    assert [(event["session"], event["turn"], event["kind"]) for event in events] == [
        ("s1", None, "session_ready"),
        ("s1", "turn-1", "turn_started"),
        ("s1", "turn-1", "text"),
        ("s1", "turn-1", "turn_completed"),
        ("s2", "turn-2", "turn_started"),
        ("s2", "turn-2", "text"),
        ("s2", "turn-2", "error"),
        ("s2", "turn-2", "turn_completed"),
        ("s1", "turn-3", "turn_started"),
        ("s1", "turn-3", "text"),
        ("s1", "turn-3", "error"),
        ("s1", "turn-3", "turn_completed"),
    ]
    assert events[0]["cli_version"] == "0.61.0"


@pytest.mark.parametrize("path", ACP, ids=lambda path: path.stem)
def test_the_output_of_a_recording_alone_loses_nothing(path: Path) -> None:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    raw = b"".join(json.dumps(entry["msg"]).encode() + b"\n" for entry in records if entry["dir"] == "a2c")
    loads = any('"session/load"' in json.dumps(entry) for entry in records)

    alone, whole = list(replay([raw])), list(replay([path.read_bytes()]))

    def texts(events: list[dict[str, Any]]) -> list[str]:
        return [event["text"] for event in events if event["kind"] in ("text", "thought")]

    assert texts(alone) == texts(whole) or loads


def test_prompts_that_overlap_end_in_their_own_order() -> None:
    records = [
        record("c2a", prompt(1, "one")),
        record("a2c", chunk("for one")),
        record("c2a", prompt(2, "two")),
        record("a2c", chunk("still for one")),
        record("a2c", end(1, "cancelled")),
        record("a2c", chunk("for two")),
        record("a2c", end(2)),
    ]

    events = list(replay([b"".join(records)]))

    texts = [(event["turn"], event["text"]) for event in events if event["kind"] == "text"]
    assert texts == [("turn-1", "for one"), ("turn-1", "still for one"), ("turn-2", "for two")]
    ends = [(event["turn"], event["stop_reason"]) for event in events if event["kind"] == "turn_completed"]
    assert ends == [("turn-1", "cancelled"), ("turn-2", "end_turn")]


def test_a_prompt_that_overtakes_one_that_waits_for_a_person_has_its_own_text() -> None:
    tool = {"toolCallId": "run_shell_command__1", "title": "touch y"}
    options = [{"optionId": "proceed_once", "name": "Allow", "kind": "allow_once"}]
    asks = {"sessionId": "s1", "toolCall": tool, "options": options}
    update = {"sessionUpdate": "tool_call_update", "toolCallId": "run_shell_command__1", "status": "completed"}
    records = [
        record("c2a", prompt(1, "one")),
        record("a2c", {"id": 0, "method": "session/request_permission", "params": asks}),
        record("c2a", prompt(2, "two")),
        record("a2c", chunk("for two")),
        record("a2c", end(2)),
        record("c2a", {"id": 0, "result": {"outcome": {"outcome": "selected", "optionId": "proceed_once"}}}),
        record("a2c", {"method": "session/update", "params": {"sessionId": "s1", "update": update}}),
        record("a2c", end(1, "cancelled")),
    ]

    events = list(replay([b"".join(records)]))

    assert [(event["turn"], event["kind"]) for event in events] == [
        ("turn-1", "turn_started"),
        ("turn-1", "tool_call"),
        ("turn-1", "permission_request"),
        ("turn-2", "turn_started"),
        ("turn-2", "text"),
        ("turn-2", "turn_completed"),
        ("turn-1", "permission_answered"),
        ("turn-1", "tool_output"),
        ("turn-1", "turn_completed"),
    ]


def load(session: str = "s1") -> bytes:
    params = {"sessionId": session, "cwd": "/w", "mcpServers": []}
    return record("c2a", {"jsonrpc": "2.0", "id": 7, "method": "session/load", "params": params})


LOADED = record("a2c", {"jsonrpc": "2.0", "id": 7, "result": {"modes": {"currentModeId": "default"}}})
COMMANDS = record(
    "a2c",
    {
        "method": "session/update",
        "params": {
            "sessionId": "s1",
            "update": {"sessionUpdate": "available_commands_update", "availableCommands": [{"name": "help"}]},
        },
    },
)


def test_history_is_not_told_again_even_where_the_client_does_not_wait_for_its_end() -> None:
    records = [
        load(),
        record("a2c", chunk("old question", kind="user_message_chunk")),
        LOADED,
        record("c2a", prompt(8, "new")),
        record("a2c", chunk("old answer")),
        record("a2c", chunk("old question 2", kind="user_message_chunk")),
        record("a2c", chunk("old answer 2")),
        COMMANDS,
        record("a2c", chunk("new answer")),
        record("a2c", end(8)),
    ]

    events = list(replay([b"".join(records)]))

    assert [event["text"] for event in events if event["kind"] == "text"] == ["new answer"]
    assert [event["kind"] for event in events] == [
        "session_ready",
        "turn_started",
        "commands_available",
        "text",
        "turn_completed",
    ]


def test_a_recording_in_which_no_commands_come_loses_nothing_of_the_turn() -> None:
    records = [
        load(),
        record("a2c", chunk("old answer")),
        LOADED,
        record("c2a", prompt(8, "new")),
        record("a2c", chunk("new ")),
        record("a2c", chunk("answer")),
        record("a2c", end(8)),
    ]

    events = list(replay([b"".join(records)]))

    assert [event["text"] for event in events if event["kind"] == "text"] == ["new ", "answer"]
    assert [event["kind"] for event in events][-1] == "turn_completed"


def test_a_process_after_a_process_is_another_conversation() -> None:
    records = [
        record("c2a", prompt(1)),
        b'{"dir": "eof", "msg": null}\n',
        record("c2a", prompt(1)),
        record("a2c", end(1)),
    ]

    events = list(replay([b"".join(records)]))

    ends = [(event["turn"], event["stop_reason"]) for event in events if event["kind"] == "turn_completed"]
    assert ends == [("turn-1", "interrupted"), ("turn-2", "end_turn")]


def test_runs_in_one_stream_json_file_are_turns() -> None:
    one = (ROOT / "stream-json" / "17-sj-resume-1.stdout.jsonl").read_bytes()
    two = (ROOT / "stream-json" / "19b-norelaunch-sigint.stdout.jsonl").read_bytes()
    three = (ROOT / "stream-json" / "17-sj-resume-3.stdout.jsonl").read_bytes()

    events = list(replay([one + two + three]))

    ends = [(event["turn"], event["stop_reason"]) for event in events if event["kind"] == "turn_completed"]
    assert ends == [("turn-1", "end_turn"), ("turn-2", "interrupted"), ("turn-3", "end_turn")]


def test_a_stream_json_file_without_its_beginning_is_a_turn() -> None:
    data = (ROOT / "stream-json" / "04-sj-text.stdout.jsonl").read_bytes().split(b"\n", 2)[2]

    events = list(replay([data]))

    assert [event["kind"] for event in events][:2] == ["session_ready", "turn_started"]
    assert events[-1]["stop_reason"] == "end_turn"


def test_a_line_of_a_recording_that_is_too_long_is_an_event() -> None:
    data = [b'{"dir":"a2c","msg":"', b"x" * (17 << 20), b'"}\n', record("c2a", prompt(1)), record("a2c", end(1))]

    events = list(replay(data))

    assert [event["kind"] for event in events] == ["unparsed", "turn_started", "turn_completed"]
    assert events[0]["why"] == "LINE_TOO_LONG"
