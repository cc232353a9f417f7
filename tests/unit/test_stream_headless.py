"""The headless dialect: a process per prompt, its arguments, its end, and what it does where it cannot go on."""

import json
from typing import Any

import pytest

from sandboxd.model.errors import PermissionNotOpenError, TurnInProgressError
from sandboxd.model.events import (
    CancelRequested,
    Error,
    EventBody,
    ModeChanged,
    Notice,
    SessionReady,
    Text,
    ToolCall,
    ToolKind,
    ToolOutput,
    ToolStatus,
    TurnCompleted,
    Unparsed,
)
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.session import Attachment, PromptInput, StopReason, TurnState
from sandboxd.stream.dialect import DialectName, Spawn, Step, TurnBill
from sandboxd.stream.dialects import make, restore
from sandboxd.stream.headless.machine import HeadlessDialect

A, B, T = SessionId("ses-a"), SessionId("ses-b"), TurnId("trn-1")


class Run:
    """A machine with everything that it produced."""

    def __init__(self, *, cli_session: str = "", mode: str = "", model: str = "") -> None:
        self.machine = HeadlessDialect()
        self.bodies: list[EventBody] = []
        self.last = Step()
        self.machine.start()
        self.machine.open(A, cli_session=cli_session, cwd="/w", mode=mode, model=model, hint="sbxd-a")

    def collect(self) -> Step:
        self.last = self.machine.take()
        self.bodies += [emitted.body for emitted in self.last.events]
        return self.last

    def prompt(self, text: str = "hello", **more: Any) -> Spawn:
        self.machine.prompt(A, T, PromptInput(text=text, **more))
        spawn = self.collect().spawn
        assert spawn is not None
        return spawn

    def says(self, **message: Any) -> None:
        self.machine.feed(json.dumps(message).encode() + b"\n")
        self.collect()

    def of(self, kind: type[EventBody]) -> list[Any]:
        self.collect()
        return [body for body in self.bodies if isinstance(body, kind)]


def test_a_prompt_is_a_process_that_reads_it_from_stdin() -> None:
    run = Run(mode="autoEdit", model="flash")

    spawn = run.prompt("-rf are no flags")

    assert list(spawn.argv) == ["--output-format", "stream-json", "--approval-mode", "auto_edit", "--model", "flash"]
    assert spawn.stdin == b"-rf are no flags"
    assert spawn.env == {"GEMINI_API_KEY": "sbxd-a"}
    assert run.of(SessionReady)[0].mode == "autoEdit"


def test_a_turn_with_a_tool_runs_to_its_end_and_the_next_one_resumes() -> None:
    run = Run()
    run.prompt()
    run.says(type="init", session_id="uuid-1", model="auto")
    assert run.last.sessions[0].cli_session == "uuid-1"
    run.says(type="message", role="user", content="hello")
    run.says(type="tool_use", tool_name="run_shell_command", tool_id="x__1", parameters={"command": "ls"})
    run.says(type="tool_result", tool_id="x__1", status="success", output="a\nb")
    run.says(type="message", role="assistant", content="done", delta=True)
    run.says(type="result", status="success", stats={})

    assert [finishing.stop_reason for finishing in run.machine.finishing] == [StopReason.END_TURN]
    run.machine.finish(T, TurnBill())
    run.machine.prompt(A, TurnId("trn-2"), PromptInput(text="more"))
    assert run.collect().spawn is None
    run.machine.exited(exit_code=0, signal=None)
    spawn = run.collect().spawn

    assert spawn is not None
    assert list(spawn.argv)[-2:] == ["--resume", "uuid-1"]
    call, output = run.of(ToolCall)[0], run.of(ToolOutput)[0]
    assert (call.title, call.kind, output.text, output.status) == ("ls", ToolKind.EXECUTE, "a\nb", ToolStatus.COMPLETED)
    assert [text.text for text in run.of(Text)] == ["done"]
    assert run.of(TurnCompleted)[0].stop_reason is StopReason.END_TURN
    assert run.machine.consumed == 0


def test_a_run_without_a_result_was_interrupted() -> None:
    run = Run()
    run.prompt()
    run.says(type="init", session_id="u")
    run.says(type="tool_use", tool_name="t", tool_id="t__1")

    run.machine.exited(exit_code=0, signal=None, stderr_tail="")

    assert run.machine.finishing[0].stop_reason is StopReason.INTERRUPTED
    assert run.of(ToolOutput)[0].status is ToolStatus.CANCELLED
    assert run.of(Error)[0].reason == "CLI_EXITED"


def test_cancel_is_a_signal_and_the_end_of_the_process_the_answer() -> None:
    run = Run()
    run.prompt()

    assert run.machine.cancel(A, request_id="req-1")
    assert run.collect().interrupt
    assert not run.machine.cancel(A)
    run.machine.exited(exit_code=0, signal=None)

    assert run.of(CancelRequested)[0].request_id == "req-1"
    assert run.of(Error) == []
    assert run.machine.finishing[0].stop_reason is StopReason.CANCELLED


def test_a_conversation_that_cannot_be_resumed_is_begun_anew_once() -> None:
    run = Run(cli_session="gone")
    run.prompt("go on")

    run.machine.exited(exit_code=42, signal=None, stderr_tail="Error resuming session: Invalid session identifier\n")

    spawn = run.collect().spawn
    assert spawn is not None
    assert "--resume" not in spawn.argv
    assert spawn.stdin == b"go on"
    assert run.of(Error)[0].reason == "SESSION_LOAD_FAILED"
    assert run.of(Notice)[0].code == "CONVERSATION_LOST"
    run.machine.exited(exit_code=42, signal=None)
    assert run.machine.finishing[0].stop_reason is StopReason.ERROR


def test_sessions_take_turns_with_the_one_process() -> None:
    run = Run()
    run.machine.open(B, cli_session="", cwd="/w", mode="", model="", hint="sbxd-b")
    run.prompt()
    run.machine.prompt(B, TurnId("trn-2"), PromptInput(text="me too"))
    assert run.collect().spawn is None

    run.machine.exited(exit_code=1, signal=None)

    spawn = run.collect().spawn
    assert spawn is not None
    assert (spawn.session, spawn.stdin) == (B, b"me too")


def test_a_prompt_that_waits_for_the_process_can_be_cancelled() -> None:
    run = Run()
    run.machine.open(B, cli_session="", cwd="/w", mode="", model="", hint="")
    run.prompt()
    run.machine.prompt(B, TurnId("trn-2"), PromptInput(text="me too"))

    assert run.machine.cancel(B)
    run.machine.exited(exit_code=0, signal=None)

    assert run.collect().spawn is None
    assert {finishing.stop_reason for finishing in run.machine.finishing} == {
        StopReason.CANCELLED,
        StopReason.INTERRUPTED,
    }


def test_text_files_go_with_the_prompt_and_others_are_named_as_left_out() -> None:
    run = Run()
    attachments = [
        Attachment(name="a.txt", mime_type="text/plain", data=b"inside"),
        Attachment(name="b.png", mime_type="image/png", data=b"\x89\xff"),
    ]

    spawn = run.prompt("look", attachments=attachments)

    assert spawn.stdin == b"look\n\n--- a.txt ---\ninside"
    assert "b.png" in run.of(Notice)[0].message


@pytest.mark.parametrize(
    ("said", "reason", "stop"),
    [
        ("The model response was blocked due to safety settings.", "MODEL_ANSWER_BLOCKED", StopReason.REFUSAL),
        ("The model returned an empty response with no text.", "MODEL_ANSWER_EMPTY", StopReason.ERROR),
        ("Model stream ended without a finish reason.", "MODEL_STREAM_BROKEN", StopReason.ERROR),
        ("Malformed function call", "MODEL_ANSWER_MALFORMED", StopReason.ERROR),
    ],
)
def test_an_answer_that_was_none_is_told_once(said: str, reason: str, stop: StopReason) -> None:
    run = Run()
    run.prompt()

    run.says(type="error", severity="error", message=said)
    run.says(type="result", status="error")

    assert [error.reason for error in run.of(Error)] == [reason]
    assert run.machine.finishing[0].stop_reason is stop


def test_a_warning_is_a_notice_and_an_error_of_the_result_the_turn_s() -> None:
    run = Run()
    run.prompt()

    run.says(type="error", severity="warning", message="Loop detected")
    run.says(type="result", status="error", error={"message": "[API Error: You have exhausted your daily quota]"})

    assert run.of(Notice)[0].code == "CLI_WARNING"
    assert run.machine.finishing[0].error is not None
    assert run.machine.finishing[0].error.reason == "MODEL_QUOTA_SPENT"


def test_modes_count_from_the_next_prompt_on() -> None:
    run = Run()

    run.machine.set_mode(A, "yolo", request_id="req-1")
    run.machine.set_model(A, "pro")
    spawn = run.prompt()

    assert run.of(ModeChanged)[0].request_id == "req-1"
    assert list(spawn.argv)[-4:] == ["--approval-mode", "yolo", "--model", "pro"]


def test_what_is_no_stream_json_is_kept() -> None:
    run = Run()
    run.prompt()

    run.machine.feed(b'noise\n{"type":"new"}\n')

    assert [unparsed.why for unparsed in run.of(Unparsed)] == ["NOT_JSON", "UNKNOWN_METHOD"]


def test_nobody_is_asked_and_one_turn_is_enough() -> None:
    run = Run()
    run.prompt()

    with pytest.raises(PermissionNotOpenError):
        run.machine.answer(A, permission="p", option="o")
    with pytest.raises(TurnInProgressError):
        run.machine.prompt(A, TurnId("trn-2"), PromptInput(text="x"))
    assert run.machine.permissions(A) == {}


def test_a_prompt_that_waits_survives_a_restart() -> None:
    run = Run()
    run.machine.open(B, cli_session="", cwd="/w", mode="", model="", hint="")
    run.prompt()
    run.machine.prompt(B, TurnId("trn-2"), PromptInput(text="me too"))
    run.collect()

    snapshot = json.loads(json.dumps(run.machine.snapshot()))
    again = restore(DialectName.HEADLESS, snapshot, prompts={TurnId("trn-2"): PromptInput(text="me too")})
    again.exited(exit_code=0, signal=None)

    step = again.take()
    assert step.spawn is not None
    assert step.spawn.stdin == b"me too"
    assert [change.state for change in step.turns] == [TurnState.FINISHING, TurnState.RUNNING]


def test_both_dialects_are_made_and_rebuilt_by_name() -> None:
    for name in DialectName:
        machine = make(name)
        assert machine.name is name
        assert restore(name, machine.snapshot(), prompts={}).snapshot() == machine.snapshot()
        with pytest.raises(ValueError, match="version"):
            restore(name, {"version": 0}, prompts={})
