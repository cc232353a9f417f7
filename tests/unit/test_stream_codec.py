"""Event bodies to JSON and back."""

import json
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.model import events
from sandboxd.model.session import StopReason
from sandboxd.stream.codec import UnreadableEventError, decode_body, encode_body, kind_of

BODIES = typing.get_args(events.EventBody)


@given(st.one_of(*[st.from_type(body) for body in BODIES]))
def test_every_event_survives_its_json(body: events.EventBody) -> None:
    there = json.loads(json.dumps(encode_body(body)))

    assert encode_body(decode_body(there)) == there
    assert type(decode_body(there)) is type(body)


def test_an_event_comes_back_equal() -> None:
    body = events.ToolOutput(
        call="c",
        tool="t",
        status=events.ToolStatus.REJECTED,
        diffs=(events.Diff(path="p", old_text=None, new_text="x"),),
    )

    assert decode_body(encode_body(body)) == body
    unparsed = events.Unparsed(data=b"\xff\x00", size=2, why="NOT_UTF8")
    assert decode_body(encode_body(unparsed)) == unparsed


def test_the_json_names_the_kind_and_spells_values_out() -> None:
    call = events.ToolCall(call="c", tool="t", title="x", kind=events.ToolKind.EXECUTE, locations=("a",))
    unparsed = events.Unparsed(data=b"\xff", size=1, why="NOT_UTF8")

    assert encode_body(call) == {
        "kind": "tool_call",
        "call": "c",
        "tool": "t",
        "title": "x",
        "tool_kind": "execute",
        "locations": ["a"],
    }
    assert encode_body(unparsed) == {"kind": "unparsed", "data": "/w==", "size": 1, "why": "NOT_UTF8", "sha256": ""}


def test_kinds_are_unique() -> None:
    assert len({kind_of(body) for body in BODIES}) == len(BODIES)


def test_fields_of_a_later_version_are_ignored_and_missing_ones_have_their_defaults() -> None:
    assert decode_body({"kind": "turn_completed", "stop_reason": "end_turn", "new": [1]}) == events.TurnCompleted(
        stop_reason=StopReason.END_TURN
    )


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"kind": 1},
        {"kind": "nope"},
        {"kind": "text"},
        {"kind": "text", "text": 1},
        {"kind": "text", "text": None},
        {"kind": "turn_completed", "stop_reason": "bored"},
        {"kind": "turn_completed", "stop_reason": "end_turn", "calls": True},
        {"kind": "unparsed", "data": "not base64!", "size": 1, "why": "X"},
        {"kind": "tool_output", "call": "c", "tool": "t", "status": "completed", "diffs": [1]},
        {"kind": "commands_available", "commands": "abc"},
    ],
)
def test_what_is_no_event_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(UnreadableEventError):
        decode_body(value)
