"""What the practice model does for a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sandboxd.practice.answer import count_tokens, messages, parts_of, smallest
from sandboxd.practice.conversation import read_conversation
from sandboxd.practice.script import WHAT_I_AM, Reply, reply_to

CONTEXT = (
    "<session_context>\nThis is the Gemini CLI.\n- **Workspace Directories:**\n  - /home/x/work space\n"
    "- **Directory Structure:**\n"
)
ALL = ("run_shell_command", "write_file", "read_file")


class Talk:
    """A CLI in a few lines: it keeps the contents, runs the calls, and gives back made-up results."""

    def __init__(self, tools: Sequence[str] = ALL) -> None:
        self.contents: list[dict[str, Any]] = []
        self.tools = tools
        self.calls: list[tuple[str, Mapping[str, object]]] = []

    @property
    def body(self) -> dict[str, Any]:
        functions = [{"name": name, "description": "x" * 2000} for name in self.tools]
        return {"contents": self.contents, "tools": [{"functionDeclarations": functions}]}

    def say(self, prompt: str, *, results: Mapping[str, Mapping[str, object]] | None = None) -> str:
        given = results or {
            "run_shell_command": {"output": "Output: Linux 6.1\nProcess Group PGID: 7"},
            "write_file": {"output": "Successfully created"},
            "read_file": {"output": "# Hello"},
        }
        opening = [{"text": CONTEXT}] if not self.contents else []
        self.contents.append({"role": "user", "parts": [*opening, {"text": prompt}]})
        for _ in range(10):
            conversation = read_conversation(self.body)
            reply = reply_to(conversation)
            self.contents.append({"role": "model", "parts": parts_of(reply, conversation.calls)})
            if reply.call is None:
                return reply.text
            self.calls.append((reply.call.name, reply.call.args))
            answer = {"id": "x", "name": reply.call.name, "response": given[reply.call.name]}
            self.contents.append({"role": "user", "parts": [{"functionResponse": answer}]})
        raise AssertionError("the tool loop does not end")


def test_the_first_prompt_runs_a_command_writes_a_file_and_tells_what_came_back() -> None:
    talk = Talk()

    answer = talk.say("Say hello from your sandbox")

    assert [name for name, _ in talk.calls] == ["run_shell_command", "write_file"]
    assert talk.calls[1][1]["file_path"] == "/home/x/work space/hello.md"
    assert "Linux 6.1" in str(talk.calls[1][1]["content"])
    assert "Linux 6.1" in answer
    assert "hello.md" in answer
    assert "PGID" not in answer
    assert WHAT_I_AM in answer


def test_it_remembers_the_session_and_reads_the_file_again() -> None:
    talk = Talk()
    talk.say("Say hello from your sandbox")

    answer = talk.say("Do you remember what I asked first? Is hello.md still there?")

    assert talk.calls[-1] == ("read_file", {"file_path": "/home/x/work space/hello.md"})
    assert '"Say hello from your sandbox"' in answer
    assert "Files written: hello.md" in answer
    assert "`uname -sr && date`" in answer
    assert "hello.md is there" in answer


@pytest.mark.parametrize(
    ("prompt", "call"),
    [
        ("run: ls | wc -l", ("run_shell_command", "command", "ls | wc -l")),
        ("Run:  echo a\necho b ", ("run_shell_command", "command", "echo a\necho b")),
        ("write notes/a.txt: one\\ntwo", ("write_file", "content", "one\ntwo\n")),
        ("write /abs/a.txt: x", ("write_file", "file_path", "/abs/a.txt")),
        ("please read hello.md", ("read_file", "file_path", "/home/x/work space/hello.md")),
        ("list the files", ("run_shell_command", "command", "ls -la")),
    ],
)
def test_it_does_what_it_is_told(prompt: str, call: tuple[str, str, str]) -> None:
    talk = Talk()
    talk.say("run: true")
    talk.calls.clear()

    talk.say(prompt)

    name, argument, value = call
    [(called, args)] = talk.calls
    assert (called, args[argument]) == (name, value)


def test_a_later_prompt_without_a_tool_is_answered_in_words() -> None:
    talk = Talk()
    talk.say("run: true")

    answer = talk.say("what is two and two?")

    assert len(talk.calls) == 1
    assert 'You said: "what is two and two?"' in answer


def test_a_tool_that_is_not_offered_is_not_called_and_one_that_fails_is_told() -> None:
    bare, failing = Talk(tools=["read_file"]), Talk()

    bare.say("hello")
    answer = failing.say("write a.txt: x", results={"write_file": {"error": "User denied it."}})

    assert bare.calls == []
    assert "write_file did not work: User denied it." in answer


def test_the_reply_does_not_depend_on_anything_but_the_request() -> None:
    talk = Talk()
    talk.say("hello")

    assert reply_to(read_conversation(talk.body)) == reply_to(read_conversation(json.loads(json.dumps(talk.body))))


def test_a_stream_is_small_pieces_with_cumulative_usage_and_one_end() -> None:
    talk = Talk()
    talk.say("hello")
    talk.contents.append({"role": "user", "parts": [{"text": "and again"}]})
    reply = Reply(subject="S", thought="T", text="one two three four five six seven eight nine ten eleven twelve")

    stream: list[Any] = list(messages(parts_of(reply, 0), body=talk.body, model="gemini-x", response_id="r"))

    totals = [message["usageMetadata"]["totalTokenCount"] for message in stream]
    last = stream[-1]["usageMetadata"]
    assert len(stream) == 3
    assert totals == sorted(set(totals))
    assert ["finishReason" in message["candidates"][0] for message in stream] == [False, False, True]
    assert {message["modelVersion"] for message in stream} == {"gemini-x-practice"}
    assert last["promptTokenCount"] == count_tokens(talk.body)
    assert 1024 <= last["cachedContentTokenCount"] < last["promptTokenCount"]
    assert last["totalTokenCount"] == (
        last["promptTokenCount"] + last["candidatesTokenCount"] + last["thoughtsTokenCount"]
    )


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (
            {"type": "OBJECT", "properties": {"a": {"type": "INTEGER"}, "b": {"type": "STRING"}}},
            {"a": 1, "b": "practice"},
        ),
        ({"type": "array", "items": {}}, []),
        ({"enum": ["x", "y"]}, "x"),
        ({"type": "boolean"}, False),
        ({"type": "number", "minimum": 7}, 7),
        (None, {}),
    ],
)
def test_a_schema_gets_the_smallest_value_that_fits(schema: object, value: object) -> None:
    assert smallest(schema) == value


@pytest.mark.parametrize("body", [{}, {"contents": 5}, {"contents": [5, {"parts": "x"}, {"parts": [{"text": 5}]}]}])
def test_a_request_that_is_nonsense_is_answered_all_the_same(body: dict[str, object]) -> None:
    assert reply_to(read_conversation(body)).text
