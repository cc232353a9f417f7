"""Opening conversations: order, hints, history that must not come out again, what is lost and what waits."""

import json

import pytest

from sandboxd.model.events import (
    CommandsAvailable,
    Error,
    ModeChanged,
    Notice,
    SessionReady,
    Text,
    ToolCall,
)
from sandboxd.model.ids import TurnId
from sandboxd.model.session import PromptInput, StopReason, TurnState
from sandboxd.stream.acp.machine import AcpDialect
from sandboxd.stream.dialect import TurnBill
from tests.acp_talk import MODELS, MODES, A, B, T, Talk, opened


def test_nothing_is_opened_before_the_greeting_is_answered() -> None:
    talk = Talk()
    talk.machine.start()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="sbxd-a")
    talk.collect()

    assert [message["method"] for message in talk.sent] == ["initialize"]
    assert talk.sent[0]["params"]["clientCapabilities"] == {"fs": {"readTextFile": False, "writeTextFile": False}}


def test_a_new_conversation_gets_its_hint_mode_and_model() -> None:
    talk = Talk()
    talk.greet()

    talk.machine.open(A, cli_session="", cwd="/w", mode="yolo", model="flash", hint="sbxd-a")
    authenticate = talk.asked("authenticate")
    talk.says({"id": authenticate["id"], "result": {}})
    talk.answers("session/new", {"sessionId": "cli-a", "modes": MODES, "models": MODELS})
    talk.answers("session/set_mode")
    talk.answers("session/set_model")

    assert authenticate["params"] == {"methodId": "gemini-api-key", "_meta": {"api-key": "sbxd-a"}}
    ready = talk.of(SessionReady)[0]
    assert (ready.resumed, ready.mode, ready.model, ready.cli_version) == (False, "yolo", "flash", "0.61.0")
    assert (list(ready.modes), list(ready.models)) == (["default", "yolo", "plan"], ["auto", "flash"])
    assert talk.sessions[A].cli_session == "cli-a"
    assert talk.sessions[A].open


def test_openings_wait_for_each_other_so_that_each_gets_its_own_hint() -> None:
    talk = Talk()
    talk.greet()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="sbxd-a")
    talk.machine.open(B, cli_session="cli-b", cwd="/w", mode="", model="", hint="sbxd-b")

    assert talk.asked("authenticate")["params"]["_meta"]["api-key"] == "sbxd-a"
    assert talk.sent == []
    talk.says({"id": 1, "result": {}})
    talk.answers("session/new", {"sessionId": "cli-a"})

    assert talk.asked("authenticate")["params"]["_meta"]["api-key"] == "sbxd-b"


def test_a_prompt_waits_for_its_session_and_survives_a_restart() -> None:
    talk = Talk()
    talk.greet()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="h")
    talk.machine.prompt(A, T, PromptInput(text="wait for me"))
    talk.answers("authenticate")
    talk.restart(**{T: PromptInput(text="wait for me")})

    talk.answers("session/new", {"sessionId": "cli-a"})

    assert talk.asked("session/prompt")["params"]["prompt"] == [{"type": "text", "text": "wait for me"}]
    assert [change.state for change in talk.turns] == [TurnState.RUNNING]


def test_a_waiting_prompt_that_nobody_kept_ends_with_a_clear_error() -> None:
    talk = Talk()
    talk.greet()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="h")
    talk.machine.prompt(A, T, PromptInput(text="x"))
    talk.restart()

    talk.answers("authenticate")
    talk.answers("session/new", {"sessionId": "cli-a"})

    assert talk.of(Error)[0].reason == "PROMPT_LOST"
    assert talk.machine.finishing[0].stop_reason is StopReason.ERROR


def test_a_waiting_prompt_that_is_cancelled_is_never_sent() -> None:
    talk = Talk()
    talk.greet()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="h")
    talk.machine.prompt(A, T, PromptInput(text="x"))

    assert talk.machine.cancel(A, request_id="req-1")
    talk.answers("authenticate")
    talk.answers("session/new", {"sessionId": "cli-a"})

    assert talk.sent == []
    assert talk.machine.finishing[0].stop_reason is StopReason.CANCELLED


def load(talk: Talk) -> None:
    talk.machine.open(A, cli_session="cli-a", cwd="/w", mode="", model="", hint="h")
    talk.answers("authenticate")


def history(talk: Talk, number: int) -> None:
    talk.writes(f"old question {number}", kind="user_message_chunk")
    talk.writes(f"old answer {number}")
    talk.updates("cli-a", sessionUpdate="tool_call", toolCallId="old__1", status="completed", title="old", content=[])


def test_history_does_not_come_out_again_however_late_it_is() -> None:
    talk = Talk()
    talk.greet()
    load(talk)
    talk.machine.prompt(A, T, PromptInput(text="new"))

    history(talk, 1)
    talk.answers("session/load", {"modes": MODES, "models": MODELS})
    history(talk, 2)
    talk.updates("cli-a", sessionUpdate="available_commands_update", availableCommands=[{"name": "memory"}])
    talk.answers("session/set_mode")
    history(talk, 3)
    talk.answers("session/set_mode")
    assert talk.of(SessionReady) == []
    talk.answers("session/set_mode")
    request = talk.asked("session/prompt")
    talk.writes("new answer")
    talk.ends(request)

    assert [text.text for text in talk.of(Text)] == ["new answer"]
    assert talk.of(ToolCall) == []
    assert talk.of(CommandsAvailable)[0].commands == ("memory",)
    assert talk.of(SessionReady)[0].resumed
    assert talk.of(ModeChanged) == []


def test_a_restart_in_the_middle_of_a_load_changes_nothing() -> None:
    talk = Talk()
    talk.greet()
    load(talk)
    talk.restart()
    talk.answers("session/load", {"modes": MODES, "models": MODELS})
    history(talk, 1)
    talk.restart()
    talk.answers("session/set_mode")
    talk.restart()
    talk.answers("session/set_mode")

    assert talk.kinds() == ["SessionReady"]


def test_a_conversation_that_cannot_be_loaded_is_begun_anew_and_said_so() -> None:
    talk = Talk()
    talk.greet()
    load(talk)
    talk.machine.prompt(A, T, PromptInput(text="go on"))

    error = {"code": -32603, "message": "Internal error", "data": {"details": 'Invalid session identifier "cli-a".'}}
    talk.answers("session/load", error=error)
    talk.answers("session/new", {"sessionId": "cli-new", "modes": MODES, "models": MODELS})

    assert talk.of(Error)[0].reason == "SESSION_LOAD_FAILED"
    assert talk.of(Notice)[0].code == "CONVERSATION_LOST"
    assert not talk.of(SessionReady)[0].resumed
    assert talk.sessions[A].cli_session == "cli-new"
    assert talk.asked("session/prompt")["params"]["sessionId"] == "cli-new"


@pytest.mark.parametrize("step", ["authenticate", "session/new"])
def test_a_session_that_cannot_be_opened_ends_its_turn_and_can_be_tried_again(step: str) -> None:
    talk = Talk()
    talk.greet()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="h")
    talk.machine.prompt(A, T, PromptInput(text="x"))
    talk.machine.set_mode(A, "yolo", request_id="req-1")
    if step == "session/new":
        talk.answers("authenticate")

    talk.answers(step, error={"code": -32000, "message": "Gemini API key is missing or not configured."})

    assert [(error.reason, error.request_id) for error in talk.of(Error)] == [
        ("CLI_AUTH_REQUIRED", "req-1"),
        ("CLI_AUTH_REQUIRED", ""),
    ]
    assert talk.machine.finishing[0].stop_reason is StopReason.ERROR
    assert not talk.machine.is_open(A)
    talk.machine.finish(T, TurnBill())
    talk.open()
    assert talk.machine.is_open(A)


def test_a_greeting_that_is_refused_fails_every_opening() -> None:
    talk = Talk()
    talk.machine.start()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="h")
    talk.machine.open(B, cli_session="", cwd="/w", mode="", model="", hint="h")

    talk.answers("initialize", error={"code": -32603, "message": "no"})

    assert [error.reason for error in talk.of(Error)] == ["CLI_ERROR", "CLI_ERROR"]
    assert not talk.machine.is_open(A)
    assert not talk.machine.is_open(B)
    talk.restart()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="h")
    assert not talk.machine.is_open(A), "nobody waits for a process that will not talk"


def test_a_session_without_an_id_is_no_session() -> None:
    talk = Talk()
    talk.greet()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="h")
    talk.answers("authenticate")

    talk.answers("session/new", {})

    assert talk.of(Error)[0].reason == "CLI_ERROR"
    assert not talk.machine.is_open(A)


def test_wishes_wait_for_the_session() -> None:
    talk = Talk()
    talk.greet()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="h")
    talk.machine.set_mode(A, "yolo", request_id="req-1")
    talk.answers("authenticate")
    talk.restart()
    talk.answers("session/new", {"sessionId": "cli-a", "modes": MODES})

    talk.answers("session/set_mode")

    assert talk.of(ModeChanged)[0] == ModeChanged(mode="yolo", request_id="req-1")


def test_a_session_that_is_closed_while_it_opens_holds_nobody_up() -> None:
    talk = Talk()
    talk.greet()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="a")
    talk.machine.open(B, cli_session="", cwd="/w", mode="", model="", hint="b")
    talk.machine.close(A)

    talk.answers("authenticate")
    assert talk.asked("authenticate")["params"]["_meta"]["api-key"] == "b"


def test_a_process_that_dies_while_it_opens_says_so() -> None:
    talk = Talk()
    talk.greet()
    talk.machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="h")
    talk.machine.prompt(A, T, PromptInput(text="x"))
    talk.machine.open(B, cli_session="", cwd="/w", mode="", model="", hint="h")

    talk.machine.exited(exit_code=41, signal=None)

    assert [error.reason for error in talk.of(Error)] == ["CLI_EXITED", "CLI_EXITED"]
    assert not talk.machine.finishing, "the prompt was never sent: it is the next process's"
    assert talk.machine.open_turn(A) is None


def test_the_same_bytes_are_written_again_after_a_crash() -> None:
    talk = opened()
    snapshot = json.dumps(talk.machine.snapshot())

    written = []
    for _ in range(2):
        machine = AcpDialect.restore(json.loads(snapshot))
        machine.prompt(A, TurnId("trn-9"), PromptInput(text="twice"))
        machine.set_mode(A, "yolo")
        written.append(machine.take().stdin)

    assert written[0] == written[1]
    assert b"twice" in written[0]


def test_a_snapshot_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version"):
        AcpDialect.restore({"version": 99})
