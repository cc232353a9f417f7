"""The ACP machine: what it makes of every oddity of the CLI."""

import base64
import json
from typing import Any

import pytest

from sandboxd.model.errors import InvalidRequestError, PermissionNotOpenError, TurnInProgressError
from sandboxd.model.events import (
    CancelRequested,
    Error,
    ModeChanged,
    ModelChanged,
    Notice,
    PermissionAnswered,
    PermissionRequest,
    Text,
    Thought,
    ToolCall,
    ToolKind,
    ToolOutput,
    ToolStatus,
    TurnCompleted,
    Unparsed,
    Usage,
)
from sandboxd.model.ids import TurnId
from sandboxd.model.session import Attachment, PromptInput, StopReason, TurnState
from sandboxd.stream.acp.content import tool_name
from sandboxd.stream.dialect import TurnBill
from sandboxd.stream.limits import MAX_OUTPUT_BYTES, MAX_TEXT_BYTES
from tests.acp_talk import A, B, T, opened

SHELL = "run_shell_command__1"


def usage(**fields: Any) -> Usage:
    counts = {"prompt_tokens": 100, "cached_tokens": 0, "output_tokens": 5, "thoughts_tokens": 0, "tool_use_tokens": 0}
    defaults = {"usage_event": "use-1", "model": "flash", **counts, "total_tokens": 105, "cost_micros": 7}
    return Usage(**{**defaults, "currency": "USD", **fields})


def test_a_turn_runs_from_prompt_to_completion() -> None:
    talk = opened()

    request = talk.prompt()
    talk.writes("hi")
    talk.ends(request)
    talk.machine.finish(T, TurnBill(usage=[usage(), usage(usage_event="use-2")], finish_reason="STOP"))

    assert request["params"]["prompt"] == [{"type": "text", "text": "hello"}]
    assert talk.kinds() == ["Text", "Usage", "Usage", "TurnCompleted"]
    completed = talk.of(TurnCompleted)[0]
    assert (completed.stop_reason, completed.calls, completed.total_tokens, completed.cost_micros) == (
        StopReason.END_TURN,
        2,
        210,
        14,
    )
    assert [change.state for change in talk.turns] == [TurnState.RUNNING, TurnState.FINISHING, TurnState.COMPLETED]
    assert talk.machine.open_turn(A) is None


def test_attachments_go_as_images_texts_and_blobs() -> None:
    talk = opened()
    attachments = [
        Attachment(name="a.png", mime_type="image/png", data=b"\x89PNG"),
        Attachment(name="notes über.txt", mime_type="text/plain", data="grün".encode()),
        Attachment(name="x.bin", mime_type="application/octet-stream", data=b"\x00\xff"),
        Attachment(name="latin.txt", mime_type="text/plain", data=b"\xfc"),
    ]

    talk.machine.prompt(A, T, PromptInput(text="look", attachments=attachments))

    blocks = talk.asked("session/prompt")["params"]["prompt"]
    assert blocks[0] == {"type": "text", "text": "look"}
    assert blocks[1] == {"type": "image", "mimeType": "image/png", "data": base64.b64encode(b"\x89PNG").decode()}
    assert blocks[2]["resource"] == {
        "uri": "file:///attachments/notes%20%C3%BCber.txt",
        "mimeType": "text/plain",
        "text": "grün",
    }
    assert blocks[3]["resource"]["blob"] == "AP8="
    assert blocks[4]["resource"]["blob"] == "/A=="


def test_a_second_prompt_is_refused_while_a_turn_is_open() -> None:
    talk = opened()
    talk.prompt()

    with pytest.raises(TurnInProgressError):
        talk.machine.prompt(A, TurnId("trn-2"), PromptInput(text="again"))


def test_a_rejected_tool_is_closed_by_the_answer() -> None:
    talk = opened()
    request = talk.prompt()
    talk.asks(rpc=7)
    permission = talk.of(PermissionRequest)[0]

    talk.machine.answer(A, permission=permission.permission, option="cancel", request_id="req-1")
    talk.ends(request)

    assert talk.kinds() == ["ToolCall", "PermissionRequest", "PermissionAnswered", "ToolOutput"]
    assert talk.of(ToolOutput)[0].status is ToolStatus.REJECTED
    assert talk.of(PermissionAnswered)[0].request_id == "req-1"
    assert talk.sent == [
        {"jsonrpc": "2.0", "id": 7, "result": {"outcome": {"outcome": "selected", "optionId": "cancel"}}}
    ]


def test_a_permitted_tool_reports_its_output() -> None:
    talk = opened()
    talk.prompt()
    talk.asks(rpc="text-id")
    permission = talk.of(PermissionRequest)[0]

    talk.machine.answer(A, permission=permission.permission, option="proceed_once")
    diff = {"type": "diff", "path": "/w/a", "oldText": None, "newText": "x", "_meta": {"kind": "add"}}
    said = {"type": "content", "content": {"type": "text", "text": "done"}}
    talk.updates("cli-a", sessionUpdate="tool_call_update", toolCallId=SHELL, status="completed", content=[diff, said])

    output = talk.of(ToolOutput)[0]
    assert (output.status, output.text, output.call) == (ToolStatus.COMPLETED, "done", permission.call)
    assert (output.diffs[0].old_text, output.diffs[0].new_text, output.diffs[0].kind) == (None, "x", "add")
    assert talk.kinds().count("ToolCall") == 1


def test_an_option_of_a_new_kind_counts_as_a_refusal() -> None:
    talk = opened()
    talk.prompt()
    tool = {"toolCallId": SHELL, "title": "t"}
    params = {"sessionId": "cli-a", "toolCall": tool, "options": [{"optionId": "odd", "name": "Odd", "kind": "new"}]}
    talk.says({"id": 1, "method": "session/request_permission", "params": params})

    talk.machine.answer(A, permission=talk.of(PermissionRequest)[0].permission, option="odd")

    assert talk.of(ToolOutput)[0].status is ToolStatus.REJECTED


def test_answering_what_is_not_open_or_not_an_option_changes_nothing() -> None:
    talk = opened()
    talk.prompt()
    talk.asks()
    permission = talk.of(PermissionRequest)[0].permission

    with pytest.raises(InvalidRequestError):
        talk.machine.answer(A, permission=permission, option="nope")
    with pytest.raises(PermissionNotOpenError):
        talk.machine.answer(A, permission="other", option="cancel")

    assert list(talk.machine.permissions(A)) == [permission]
    assert talk.sent == []


def test_an_empty_answer_refuses_and_cancels_the_turn() -> None:
    talk = opened()
    request = talk.prompt()
    talk.asks(rpc=3)
    permission = talk.of(PermissionRequest)[0].permission

    talk.machine.answer(A, permission=permission, option="", request_id="req-9")
    talk.collect()

    assert [message.get("method", "answer") for message in talk.sent] == ["answer", "session/cancel"]
    talk.ends(request, "cancelled")
    assert talk.machine.finishing[0].stop_reason is StopReason.CANCELLED


def test_cancel_answers_open_permissions_before_it_cancels() -> None:
    talk = opened()
    request = talk.prompt()
    talk.asks(rpc=3)

    assert talk.machine.cancel(A, request_id="req-1")
    assert not talk.machine.cancel(A, request_id="req-2")

    kinds = talk.kinds()
    assert kinds[-3:] == ["CancelRequested", "PermissionAnswered", "ToolOutput"]
    assert talk.of(ToolOutput)[0].status is ToolStatus.CANCELLED
    assert talk.sent[0]["result"] == {"outcome": {"outcome": "cancelled"}}
    assert talk.sent[1]["method"] == "session/cancel"
    talk.ends(request, "cancelled")
    assert [finishing.stop_reason for finishing in talk.machine.finishing] == [StopReason.CANCELLED]


def test_a_permission_asked_after_the_cancel_is_refused_at_once() -> None:
    talk = opened()
    talk.prompt()
    talk.machine.cancel(A)
    talk.asked("session/cancel")

    talk.asks(rpc=5)

    assert talk.sent[0]["result"] == {"outcome": {"outcome": "cancelled"}}
    assert talk.sent[1]["method"] == "session/cancel"
    assert talk.machine.permissions(A) == {}


def test_cancel_without_a_turn_does_nothing() -> None:
    talk = opened()

    assert not talk.machine.cancel(A)

    assert talk.kinds() == []
    assert talk.sent == []


def test_an_update_without_a_call_begins_one() -> None:
    talk = opened()
    talk.prompt()

    said = [{"type": "content", "content": {"type": "text", "text": "params must have file_path"}}]
    talk.updates(
        "cli-a",
        sessionUpdate="tool_call_update",
        toolCallId="read_file__x",
        status="failed",
        content=said,
        kind="read",
    )

    call, output = talk.of(ToolCall)[0], talk.of(ToolOutput)[0]
    assert (call.tool, call.kind, call.title) == ("read_file", ToolKind.READ, "read_file")
    assert (output.call, output.status) == (call.call, ToolStatus.FAILED)


def test_ids_that_the_api_repeats_make_calls_of_their_own() -> None:
    talk = opened()
    request = talk.prompt()

    for _ in range(2):
        talk.updates("cli-a", sessionUpdate="tool_call", toolCallId=SHELL, status="in_progress", title="a")
    for text in ("first", "second"):
        said = [{"type": "content", "content": {"type": "text", "text": text}}]
        talk.updates("cli-a", sessionUpdate="tool_call_update", toolCallId=SHELL, status="completed", content=said)
    talk.ends(request)
    talk.machine.finish(T, TurnBill())
    talk.prompt(turn=TurnId("trn-2"))
    talk.updates("cli-a", sessionUpdate="tool_call", toolCallId=SHELL, status="in_progress", title="a")

    calls = [call.call for call in talk.of(ToolCall)]
    assert len(set(calls)) == 3
    assert [(output.call, output.text) for output in talk.of(ToolOutput)] == list(
        zip(calls, ["first", "second"], strict=False)
    )


def test_what_a_turn_leaves_open_is_closed_at_its_end() -> None:
    talk = opened()
    request = talk.prompt()
    talk.updates("cli-a", sessionUpdate="tool_call", toolCallId=SHELL, status="in_progress", title="a")
    talk.asks("write_file__2", rpc=4)

    talk.ends(request)

    assert [output.status for output in talk.of(ToolOutput)] == [ToolStatus.REJECTED, ToolStatus.CANCELLED]
    assert talk.machine.permissions(A) == {}
    assert talk.sent[-1]["result"] == {"outcome": {"outcome": "cancelled"}}


def test_a_tool_that_is_announced_and_over_at_once_has_its_output() -> None:
    talk = opened()
    talk.prompt()

    talk.updates("cli-a", sessionUpdate="tool_call", toolCallId=SHELL, status="completed", title="a", content=[])

    assert talk.kinds() == ["ToolCall", "ToolOutput"]


def test_progress_of_a_tool_is_a_notice() -> None:
    talk = opened()
    talk.prompt()
    talk.updates("cli-a", sessionUpdate="tool_call", toolCallId=SHELL, status="in_progress", title="a")

    said = [{"type": "content", "content": {"type": "text", "text": "50 %"}}]
    talk.updates("cli-a", sessionUpdate="tool_call_update", toolCallId=SHELL, status="in_progress", content=said)

    assert talk.of(Notice)[0].message == "run_shell_command: 50 %"
    assert talk.of(ToolOutput) == []


@pytest.mark.parametrize(
    ("tool_call_id", "name"),
    [
        ("run_shell_command__call_shell_0", "run_shell_command"),
        ("read_many_files-1763930000000-1", "read_many_files"),
        ("mcp_server_tool_1763930000000_12", "mcp_server_tool"),
        ("run_shell_command__run_shell_command_1763930000000_0", "run_shell_command"),
        ("resolve-prompt-/etc/hosts-3f2c", "resolve_prompt"),
        ("opaque", "opaque"),
        ("", ""),
        ("__x", "__x"),
    ],
)
def test_the_tool_s_name_is_found_in_the_id(tool_call_id: str, name: str) -> None:
    assert tool_name(tool_call_id) == name


def test_a_linked_file_that_may_be_read_is_closed_by_the_answer() -> None:
    talk = opened()
    talk.prompt()
    talk.asks("resolve-prompt-/etc/hosts-1")

    talk.machine.answer(A, permission=talk.of(PermissionRequest)[0].permission, option="proceed_once")

    assert talk.of(ToolOutput)[0].status is ToolStatus.COMPLETED


def test_thoughts_are_split_into_subject_and_text() -> None:
    talk = opened()
    talk.prompt()

    talk.writes("**Weighing**\nThe plan.", kind="agent_thought_chunk")
    talk.writes("no heading", kind="agent_thought_chunk")
    talk.writes("**Only**", kind="agent_thought_chunk")

    assert [(thought.subject, thought.text) for thought in talk.of(Thought)] == [
        ("Weighing", "The plan."),
        ("", "no heading"),
        ("Only", ""),
    ]


def test_mode_chunks_are_no_text() -> None:
    talk = opened()
    talk.machine.set_mode(A, "yolo", request_id="req-1")
    request = talk.asked("session/set_mode")

    talk.writes("[MODE_UPDATE] yolo")
    talk.says({"id": request["id"], "result": {}})
    talk.writes("[MODE_UPDATE] plan")
    talk.writes("[MODE_UPDATE] is what I say")

    assert [(mode.mode, mode.request_id) for mode in talk.of(ModeChanged)] == [("yolo", "req-1"), ("plan", "")]
    assert [text.text for text in talk.of(Text)] == ["[MODE_UPDATE] is what I say"]
    assert talk.sessions[A].mode == "plan"


def test_a_mode_or_model_that_is_refused_is_an_error_with_its_request() -> None:
    talk = opened()
    talk.machine.set_mode(A, "nope", request_id="req-1")
    talk.machine.set_model(A, "flash", request_id="req-2")

    details = {"code": -32603, "message": "Internal error", "data": {"details": "Invalid or unavailable mode: nope"}}
    talk.answers("session/set_mode", error=details)
    talk.answers("session/set_model")

    error = talk.of(Error)[0]
    assert (error.reason, error.request_id) == ("MODE_NOT_AVAILABLE", "req-1")
    assert "Invalid or unavailable mode" in error.message
    assert talk.of(ModelChanged)[0] == ModelChanged(model="flash", request_id="req-2")


def test_long_text_becomes_several_events_and_loses_nothing() -> None:
    talk = opened()
    talk.prompt()
    said = "grün " * 50_000

    talk.writes(said)

    texts = [text.text for text in talk.of(Text)]
    assert len(texts) > 3
    assert max(len(text.encode()) for text in texts) <= MAX_TEXT_BYTES
    assert "".join(texts) == said


def test_large_output_is_cut_and_says_so() -> None:
    talk = opened()
    talk.prompt()
    talk.updates("cli-a", sessionUpdate="tool_call", toolCallId=SHELL, status="in_progress", title="a")

    said = [{"type": "content", "content": {"type": "text", "text": "é" * MAX_OUTPUT_BYTES}}]
    talk.updates("cli-a", sessionUpdate="tool_call_update", toolCallId=SHELL, status="completed", content=said)

    output = talk.of(ToolOutput)[0]
    assert output.truncated
    assert len(output.text.encode()) == MAX_OUTPUT_BYTES


def test_text_that_nobody_can_store_is_replaced() -> None:
    talk = opened()
    talk.prompt()

    talk.says(
        b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"cli-a","update":'
        b'{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"a\\u0000b\\ud800c"}}}}'
    )

    assert talk.of(Text)[0].text == "a\ufffdb\ufffdc"


def test_sessions_that_interleave_keep_apart() -> None:
    talk = opened()
    talk.open(B, "cli-b")
    first, second = talk.prompt(), talk.prompt(session=B, turn=TurnId("trn-2"))

    talk.writes("for a", "cli-a")
    talk.writes("for b", "cli-b")
    talk.ends(second)
    talk.ends(first)

    events = [emitted for step in talk.steps for emitted in step.events if isinstance(emitted.body, Text)]
    assert [(emitted.session, emitted.turn, emitted.body.text) for emitted in events] == [  # type: ignore[union-attr]
        (A, T, "for a"),
        (B, "trn-2", "for b"),
    ]
    assert [finishing.session for finishing in talk.machine.finishing] == [A, B]


def test_bytes_for_an_unknown_session_are_kept() -> None:
    talk = opened()

    talk.writes("whose?", "cli-x")

    unparsed = talk.of(Unparsed)[0]
    assert unparsed.why == "UNKNOWN_SESSION"
    assert b"whose?" in unparsed.data


def test_a_permission_for_an_unknown_session_is_refused_so_that_nobody_waits() -> None:
    talk = opened()

    talk.asks(rpc=9, cli_session="cli-x")

    assert talk.sent == [{"jsonrpc": "2.0", "id": 9, "result": {"outcome": {"outcome": "cancelled"}}}]
    assert talk.of(Unparsed)[0].why == "UNKNOWN_SESSION"


@pytest.mark.parametrize("method", ["fs/read_text_file", "terminal/create", "whatever"])
def test_other_requests_of_the_agent_are_refused(method: str) -> None:
    talk = opened()

    talk.says({"id": 2, "method": method, "params": {"sessionId": "cli-a"}})

    assert (talk.sent[0]["id"], talk.sent[0]["error"]["code"]) == (2, -32601)
    assert talk.of(Unparsed)[0].why == "UNKNOWN_METHOD"


def test_late_and_unknown_answers_are_kept_as_they_came() -> None:
    talk = opened()
    request = talk.prompt()
    talk.ends(request)
    talk.machine.finish(T, TurnBill())

    talk.ends(request)
    talk.writes("late")

    assert [unparsed.why for unparsed in talk.of(Unparsed)] == ["UNKNOWN_ID"]
    assert talk.of(Text)[0].text == "late"


@pytest.mark.parametrize(
    ("update", "why"),
    [
        ({"sessionUpdate": "usage_update", "used": 1}, "UNKNOWN_UPDATE"),
        ({"sessionUpdate": "agent_message_chunk", "content": {"type": "image", "data": "AA=="}}, "UNKNOWN_CONTENT"),
        ({"sessionUpdate": "agent_thought_chunk"}, "UNKNOWN_CONTENT"),
        ({}, "UNKNOWN_UPDATE"),
    ],
)
def test_updates_that_are_new_to_us_are_kept_with_their_line(update: dict[str, Any], why: str) -> None:
    talk = opened()
    talk.prompt()

    talk.says({"method": "session/update", "params": {"sessionId": "cli-a", "update": update}})

    unparsed = talk.of(Unparsed)[0]
    assert unparsed.why == why
    assert json.loads(unparsed.data)["params"]["update"] == update


def test_a_death_ends_every_turn_and_closes_what_is_open() -> None:
    talk = opened()
    talk.open(B, "cli-b")
    talk.prompt()
    talk.prompt(session=B, turn=TurnId("trn-2"))
    talk.asks()
    talk.machine.set_mode(A, "yolo", request_id="req-1")
    talk.collect()
    talk.sent.clear()
    talk.bodies.clear()
    talk.machine.feed(b'{"cut')

    talk.machine.exited(exit_code=None, signal=9, stderr_tail="boom\nkey AIzaSyD-1234567890\n")

    assert talk.kinds() == ["Unparsed", "Error", "PermissionAnswered", "ToolOutput", "Error", "Error"]
    assert {finishing.stop_reason for finishing in talk.machine.finishing} == {StopReason.INTERRUPTED}
    errors = talk.of(Error)
    assert [error.reason for error in errors] == ["CLI_EXITED"] * 3
    assert errors[0].request_id == "req-1"
    assert "signal 9" in errors[1].message
    assert "AIza" not in errors[1].message
    assert not talk.machine.is_open(A)
    assert talk.of(Unparsed)[0].why == "LINE_CUT"


def test_a_last_line_without_its_end_is_understood_all_the_same() -> None:
    talk = opened()
    request = talk.prompt()

    talk.machine.feed(json.dumps({"id": request["id"], "result": {"stopReason": "end_turn"}}).encode())
    talk.machine.exited(exit_code=0, signal=None)

    assert [finishing.stop_reason for finishing in talk.machine.finishing] == [StopReason.END_TURN]


@pytest.mark.parametrize(
    ("stop", "bill", "said", "expected", "also"),
    [
        ("end_turn", TurnBill(usage=[usage()], finish_reason="STOP"), "hi", StopReason.END_TURN, []),
        ("end_turn", TurnBill(usage=[usage()], finish_reason="SAFETY"), "", StopReason.REFUSAL, ["Notice"]),
        ("end_turn", TurnBill(usage=[usage()], block_reason="OTHER"), "", StopReason.REFUSAL, ["Notice"]),
        ("end_turn", TurnBill(usage=[usage()], finish_reason="MAX_TOKENS"), "cut", StopReason.MAX_TOKENS, []),
        ("end_turn", TurnBill(usage=[usage()], finish_reason="STOP"), "", StopReason.END_TURN, ["Notice"]),
        ("end_turn", TurnBill(), "", StopReason.END_TURN, []),
        ("end_turn", TurnBill(usage=[usage(), usage()]), "twice", StopReason.END_TURN, ["Notice"]),
        ("end_turn", TurnBill(usage=[usage(), usage()], complete=False), "twice", StopReason.END_TURN, []),
        ("end_turn", TurnBill(usage=[usage(), usage()], finish_reason="STOP"), "once", StopReason.END_TURN, []),
        ("end_turn", TurnBill(finish_reason="MALFORMED_FUNCTION_CALL"), "", StopReason.ERROR, ["Error"]),
        ("max_tokens", TurnBill(), "x", StopReason.MAX_TOKENS, []),
        ("max_turn_requests", TurnBill(), "x", StopReason.MAX_TURN_REQUESTS, []),
        ("refusal", TurnBill(), "", StopReason.REFUSAL, []),
        ("something_new", TurnBill(), "x", StopReason.END_TURN, []),
    ],
)
def test_the_ledger_knows_how_a_turn_really_ended(
    stop: str, bill: TurnBill, said: str, expected: StopReason, also: list[str]
) -> None:
    talk = opened()
    request = talk.prompt()
    if said:
        talk.writes(said)
    talk.ends(request, stop)
    talk.collect()
    talk.bodies.clear()

    talk.machine.finish(T, bill)

    assert [kind for kind in talk.kinds() if kind != "Usage"] == [*also, "TurnCompleted"]
    assert talk.of(TurnCompleted)[0].stop_reason is expected


def test_costs_that_do_not_add_up_are_not_added() -> None:
    talk = opened()
    request = talk.prompt()
    talk.ends(request)

    talk.machine.finish(T, TurnBill(usage=[usage(), usage(cost_micros=None)], complete=False))

    completed = talk.of(TurnCompleted)[0]
    assert (completed.cost_micros, completed.total_tokens, completed.usage_complete) == (None, 210, False)


def test_a_session_that_the_cli_has_lost_must_be_opened_again() -> None:
    talk = opened()
    request = talk.prompt()

    talk.says({"id": request["id"], "error": {"code": -32602, "message": "Session not found: cli-a"}})

    assert talk.of(Error)[0].reason == "CLI_SESSION_LOST"
    assert not talk.machine.is_open(A)
    assert not talk.sessions[A].open


def test_an_error_after_a_cancel_is_a_cancelled_turn() -> None:
    talk = opened()
    request = talk.prompt()
    talk.machine.cancel(A)

    talk.says({"id": request["id"], "error": {"code": -32603, "message": "Internal error"}})

    assert talk.machine.finishing[0].stop_reason is StopReason.CANCELLED
    assert talk.of(CancelRequested)


def test_a_closed_session_is_silent() -> None:
    talk = opened()
    talk.prompt()

    talk.machine.close(A)
    talk.asked("session/cancel")
    talk.bodies.clear()
    talk.writes("who listens?")

    assert talk.kinds() == []
    assert talk.machine.finishing == []
