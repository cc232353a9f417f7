"""The machines against nonsense: they never raise, lose nothing, and keep their promises about calls and turns."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.model.errors import SandboxdError
from sandboxd.model.events import ToolCall, ToolOutput, TurnCompleted, Unparsed
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.session import PromptInput
from sandboxd.stream.acp.machine import AcpDialect
from sandboxd.stream.acp.observer import AcpObserver
from sandboxd.stream.codec import decode_body, encode_body
from sandboxd.stream.dialect import TurnBill
from sandboxd.stream.headless.machine import HeadlessDialect
from sandboxd.stream.replay import replay
from tests.acp_talk import opened
from tests.recordings import ACP

SESSIONS = ["cli-a", "cli-b", "cli-x", "ses-a"]
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-40000, 40000) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
odd = json_values | st.sampled_from(
    [
        "text",
        "completed",
        "failed",
        "in_progress",
        "end_turn",
        "cancelled",
        "sh__1",
        "sh__2",
        "diff",
        "content",
        *SESSIONS,
    ]
)
block = st.fixed_dictionaries({"type": odd, "text": odd}) | odd
item = st.fixed_dictionaries(
    {"type": st.sampled_from(["content", "diff", "x"])}, optional={"content": block, "newText": odd}
)
update = st.fixed_dictionaries(
    {
        "sessionUpdate": st.sampled_from(
            [
                "agent_message_chunk",
                "agent_thought_chunk",
                "user_message_chunk",
                "tool_call",
                "tool_call_update",
                "available_commands_update",
                "current_mode_update",
                "plan",
                "new",
            ]
        )
    },
    optional={
        "content": block | st.lists(item, max_size=2),
        "toolCallId": st.sampled_from(["sh__1", "sh__2"]) | odd,
        "status": st.sampled_from(["completed", "failed", "in_progress"]) | odd,
        "title": odd,
        "locations": odd,
        "kind": odd,
        "availableCommands": odd,
        "entries": odd,
        "currentModeId": odd,
    },
)
ids = st.integers(0, 8) | odd
option = st.fixed_dictionaries(
    {"optionId": st.sampled_from(["yes", "no"]), "kind": st.sampled_from(["allow_once", "reject_once", "x"])}
)
sessions = st.sampled_from(SESSIONS)
messages = st.one_of(
    st.fixed_dictionaries(
        {
            "method": st.just("session/update"),
            "params": st.fixed_dictionaries({"sessionId": sessions, "update": update}) | odd,
        }
    ),
    st.fixed_dictionaries(
        {
            "id": ids,
            "method": st.just("session/request_permission"),
            "params": st.fixed_dictionaries(
                {"sessionId": sessions, "toolCall": update, "options": st.lists(option, max_size=2) | odd}
            ),
        }
    ),
    st.fixed_dictionaries(
        {
            "id": st.integers(0, 12),
            "result": st.fixed_dictionaries(
                {}, optional={"stopReason": odd, "sessionId": sessions, "modes": odd, "models": odd, "agentInfo": odd}
            )
            | odd,
        }
    ),
    st.fixed_dictionaries(
        {"id": st.integers(0, 12), "error": st.fixed_dictionaries({"code": odd, "message": odd}) | odd}
    ),
    st.fixed_dictionaries({"id": ids, "method": odd, "params": odd}),
    json_values,
)
lines = messages.map(lambda message: json.dumps(message).encode() + b"\n") | st.binary(max_size=40)
A = SessionId("ses-a")


def act(machine: AcpDialect | HeadlessDialect, deed: str, number: int) -> None:
    """What a driver may do at any time."""
    turn = TurnId(f"trn-{number}")
    try:
        match deed:
            case "prompt":
                machine.prompt(A, turn, PromptInput(text="x"))
            case "cancel":
                machine.cancel(A)
            case "mode":
                machine.set_mode(A, "yolo", request_id=f"req-{number}")
            case "answer":
                for permission, options in machine.permissions(A).items():
                    machine.answer(A, permission=permission, option=options[0] if options else "")
            case "open":
                machine.open(A, cli_session="cli-a" if number % 2 else "", cwd="/w", mode="plan", model="m", hint="h")
            case "close":
                machine.close(A)
                machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="h")
            case _:
                for finishing in machine.finishing:
                    machine.finish(finishing.turn, TurnBill())
    except SandboxdError:
        return


deeds = st.sampled_from(["prompt", "cancel", "mode", "answer", "open", "close", "finish"])


@settings(max_examples=200, deadline=None)
@given(
    script=st.lists(lines | deeds, max_size=40),
    restarts=st.sets(st.integers(0, 40), max_size=3),
    greeted=st.booleans(),
)
def test_the_machine_keeps_its_promises_whatever_the_agent_says(
    script: list[bytes | str], restarts: set[int], *, greeted: bool
) -> None:
    machine = opened().machine if greeted else AcpDialect()
    if not greeted:
        machine.start()
        machine.open(A, cli_session="", cwd="/w", mode="", model="", hint="h")
    bodies: list[Any] = []
    given_to_the_process: set[TurnId] = set()
    fed = machine.consumed

    for number, entry in enumerate([*script, "finish"]):
        if isinstance(entry, bytes):
            machine.feed(entry)
            fed += len(entry)
        else:
            act(machine, entry, number)
        step = machine.take()
        bodies += [emitted.body for emitted in step.events]
        given_to_the_process |= {change.turn for change in step.turns}
        assert all(json.loads(line)["jsonrpc"] == "2.0" for line in step.stdin.splitlines())
        if number in restarts and machine.consumed == fed:
            machine = AcpDialect.restore(json.loads(json.dumps(machine.snapshot())))
    open_turn = machine.open_turn(A)
    machine.exited(exit_code=1, signal=None)
    act(machine, "finish", 0)
    ended = [emitted.body for emitted in machine.take().events]
    bodies += ended

    for body in bodies:
        assert encode_body(decode_body(json.loads(json.dumps(encode_body(body))))) == encode_body(body)
        json.dumps(encode_body(body), ensure_ascii=False).encode()
    # A turn that the process never got is forgotten: the driver gives it to the next process.
    assert open_turn not in given_to_the_process or any(isinstance(body, TurnCompleted) for body in ended)
    assert machine.open_turn(A) is None
    called = [body.call for body in bodies if isinstance(body, ToolCall)]
    returned = [body.call for body in bodies if isinstance(body, ToolOutput)]
    assert len(set(called)) == len(called)
    assert len(set(returned)) == len(returned)
    assert set(returned) <= set(called)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_becomes_unparsed_events_that_hold_all_of_it(garbage: bytes) -> None:
    machine = AcpDialect()

    machine.feed(garbage)
    machine.exited(exit_code=0, signal=None)

    kept = [emitted.body for emitted in machine.take().events]
    assert machine.consumed == len(garbage)
    assert all(isinstance(body, Unparsed) for body in kept)
    lines_ = [line for line in garbage.split(b"\n") if line.strip()]
    assert sum(body.size for body in kept if isinstance(body, Unparsed)) == sum(len(line) for line in lines_)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), messages)
        | st.tuples(
            st.just(True),
            st.fixed_dictionaries(
                {
                    "id": st.integers(0, 8),
                    "method": st.sampled_from(
                        ["initialize", "session/new", "session/load", "session/prompt", "session/set_mode", "x"]
                    ),
                    "params": st.fixed_dictionaries({"sessionId": sessions}, optional={"prompt": odd, "modeId": odd})
                    | odd,
                }
            ),
        ),
        max_size=40,
    )
)
def test_the_observer_copes_with_any_client(script: list[tuple[bool, Any]]) -> None:
    machine = AcpDialect(observing=True)
    observer = AcpObserver(machine)

    for from_client, message in script:
        if not from_client:
            machine.feed(json.dumps(message).encode() + b"\n")
        elif isinstance(message, dict):
            observer.sent(message)
        act(machine, "finish", 0)
    machine.exited(exit_code=None, signal=None)
    act(machine, "finish", 0)

    events = [emitted.body for emitted in machine.take().events]
    assert len([body for body in events if isinstance(body, TurnCompleted)]) == observer.turns
    assert machine.take().stdin == b""


@settings(max_examples=200, deadline=None)
@given(
    script=st.lists(
        deeds
        | st.binary(max_size=20)
        | st.fixed_dictionaries(
            {"type": st.sampled_from(["init", "message", "tool_use", "tool_result", "error", "result", "x"])},
            optional={
                "role": odd,
                "content": odd,
                "tool_id": st.sampled_from(["a", "b"]) | odd,
                "tool_name": odd,
                "parameters": odd,
                "status": st.sampled_from(["error", "success"]) | odd,
                "error": odd | st.fixed_dictionaries({"message": odd}),
                "message": odd,
                "session_id": odd,
                "severity": odd,
            },
        ).map(lambda message: json.dumps(message).encode() + b"\n")
        | st.sampled_from([0, 1, 42, 144]),
        max_size=30,
    )
)
def test_the_headless_machine_keeps_its_promises(script: list[bytes | str | int]) -> None:
    machine = HeadlessDialect()
    machine.open(A, cli_session="cli-a", cwd="/w", mode="yolo", model="", hint="h")
    bodies: list[Any] = []

    for number, entry in enumerate(script):
        if isinstance(entry, bytes):
            machine.feed(entry)
        elif isinstance(entry, int):
            machine.exited(exit_code=entry, signal=None)
        else:
            act(machine, entry, number)
        bodies += [emitted.body for emitted in machine.take().events]
        if machine.consumed == 0:
            machine = HeadlessDialect.restore(
                json.loads(json.dumps(machine.snapshot())),
                prompts={TurnId(f"trn-{n}"): PromptInput(text="x") for n in range(40)},
            )
    for code in (1, 1, 1):
        machine.exited(exit_code=code, signal=None)
        act(machine, "finish", 0)
    bodies += [emitted.body for emitted in machine.take().events]

    assert machine.open_turn(A) is None
    called = [body.call for body in bodies if isinstance(body, ToolCall)]
    assert set(called) >= {body.call for body in bodies if isinstance(body, ToolOutput)}


@settings(max_examples=60, deadline=None)
@given(
    path=st.sampled_from(ACP),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 30), st.binary(max_size=8)), min_size=1, max_size=8),
)
def test_a_damaged_recording_is_replayed_all_the_same(path: Any, edits: list[tuple[float, int, bytes]]) -> None:
    data = path.read_bytes()[:60_000]
    for where, length, instead in edits:
        at = int(where * len(data))
        data = data[:at] + instead + data[at + length :]

    events = list(replay([data]))

    started = [event for event in events if event["kind"] == "turn_started"]
    completed = [event for event in events if event["kind"] == "turn_completed"]
    assert len(started) == len(completed)
