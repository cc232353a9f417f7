"""Reads a `generateContent` request: what was asked, what was answered, what the tools gave. Pure, believes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

_CONTEXT: Final = "<session_context>"
_ATTACHED: Final = "--- Content from referenced"
_WORKSPACE: Final = re.compile(r"Workspace Directories:\*\*\s*\n\s*- (/[^\n]*)")
_SHELL_OUTPUT: Final = re.compile(
    r"Output: (.*?)(?=\n(?:Error|Exit Code|Signal|Background PIDs|Process Group PGID):|\Z)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """A call that was made, and what came back."""

    name: str
    args: Mapping[str, object]
    output: str
    failed: bool


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One prompt with the tool calls that followed it."""

    prompt: str
    results: list[ToolResult] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a request holds."""

    exchanges: Sequence[Exchange]
    """Oldest first; the last one is what has to be answered now. At least one."""
    workspace: str
    """Absolute path of the workspace, from the CLI's own context text."""
    tools: frozenset[str]
    """Names of the functions that may be called."""
    calls: int
    """Function calls so far: the next one's number."""

    @property
    def now(self) -> Exchange:
        """The exchange that has to be answered."""
        return self.exchanges[-1]

    @property
    def earlier(self) -> Sequence[Exchange]:
        """The exchanges before it."""
        return self.exchanges[:-1]


def read_conversation(body: Mapping[str, object]) -> Conversation:
    """Read a request's body."""
    exchanges: list[Exchange] = []
    open_calls: list[tuple[str, Mapping[str, object]]] = []
    workspace, calls = "/workspace", 0
    for content in _objects(body.get("contents")):
        parts = list(_objects(content.get("parts")))
        for part in parts:
            if isinstance(call := part.get("functionCall"), Mapping):
                calls += 1
                args = call.get("args")
                open_calls.append((str(call.get("name")), args if isinstance(args, Mapping) else {}))
        answers = [answer for part in parts if isinstance(answer := part.get("functionResponse"), Mapping)]
        if answers and exchanges:
            exchanges[-1].results += [_result(answer, open_calls) for answer in answers]
        if content.get("role") in {None, "user"}:
            texts = [text for part in parts if isinstance(text := part.get("text"), str)]
            workspace = next((found[1] for text in texts if (found := _WORKSPACE.search(text))), workspace)
            if not answers and (prompt := _prompt(texts)):
                exchanges.append(Exchange(prompt=prompt))
    tools = {
        str(function.get("name"))
        for tool in _objects(body.get("tools"))
        for function in _objects(tool.get("functionDeclarations"))
    }
    return Conversation(
        exchanges=exchanges or [Exchange(prompt="")], workspace=workspace, tools=frozenset(tools), calls=calls
    )


def _prompt(texts: Sequence[str]) -> str:
    """Return the prompt of a message: its last text that is neither the CLI's context nor a file's content."""
    prompt = ""
    for text in texts:
        if text.lstrip().startswith(_ATTACHED):
            break
        if text.strip() and not text.lstrip().startswith(_CONTEXT):
            prompt = text.strip()
    return prompt


def _result(answer: Mapping[str, object], open_calls: list[tuple[str, Mapping[str, object]]]) -> ToolResult:
    name = str(answer.get("name"))
    match = next((call for call in open_calls if call[0] == name), (name, {}))
    if match in open_calls:
        open_calls.remove(match)
    response = answer.get("response")
    given: Mapping[str, object] = response if isinstance(response, Mapping) else {}
    output = str(given.get("output", given.get("error", "")))
    found = _SHELL_OUTPUT.search(output)
    return ToolResult(name=name, args=match[1], output=(found[1] if found else output).strip(), failed="error" in given)


def _objects(value: object) -> Iterator[Mapping[str, object]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, Mapping))
