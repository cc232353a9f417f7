"""The events of stream-json, one object a line, to events of a session. Knows a turn, not where it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sandboxd.model.events import Error, EventBody, Notice, Text, ToolCall, ToolKind, ToolOutput, ToolStatus
from sandboxd.model.session import StopReason
from sandboxd.stream.acp.content import tool_name
from sandboxd.stream.cutting import clean, cut, pieces, shorten
from sandboxd.stream.failures import failure_from_api, named_failure
from sandboxd.stream.headless.state import HeadlessSession, HeadlessTurn
from sandboxd.stream.limits import MAX_MESSAGE_BYTES, MAX_NAME_BYTES, MAX_OUTPUT_BYTES, MAX_TEXT_BYTES, MAX_TITLE_BYTES
from sandboxd.stream.outbox import Outbox
from sandboxd.stream.reading import obj, text

_UNSAFE = re.compile(r"[^A-Za-z0-9_.:-]")
_BLOCKED = re.compile(r"blocked|safety|prohibited|recitation", re.IGNORECASE)
_EMPTY = re.compile(r"empty response", re.IGNORECASE)
_NO_FINISH = re.compile(r"without a finish reason", re.IGNORECASE)
_MALFORMED = re.compile(r"malformed function call|unexpected tool call", re.IGNORECASE)
_KINDS = {
    "read_file": ToolKind.READ,
    "read_many_files": ToolKind.READ,
    "list_directory": ToolKind.READ,
    "glob": ToolKind.SEARCH,
    "grep_search": ToolKind.SEARCH,
    "search_file_content": ToolKind.SEARCH,
    "write_file": ToolKind.EDIT,
    "replace": ToolKind.EDIT,
    "run_shell_command": ToolKind.EXECUTE,
    "web_fetch": ToolKind.FETCH,
    "google_web_search": ToolKind.FETCH,
}
_TITLES = ("command", "file_path", "path", "pattern", "query", "url", "prompt")
_PATHS = ("file_path", "path", "dir_path")


class Lines:
    """Writes what a run says into the log of its turn."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def said(self, session: HeadlessSession, turn: HeadlessTurn, message: Mapping[str, Any]) -> None:
        """A piece of the answer."""
        content = text(message, "content")
        turn.said = turn.said or bool(content.strip())
        for piece in pieces(content, MAX_TEXT_BYTES):
            self._emit(session, turn, Text(text=piece))

    def called(self, session: HeadlessSession, turn: HeadlessTurn, message: Mapping[str, Any]) -> None:
        """A tool starts."""
        tool_id = text(message, "tool_id")
        turn.parts += 1
        call = f"{_UNSAFE.sub('_', tool_id)[:80]}#{turn.id}.{turn.parts}"
        tool = shorten(text(message, "tool_name") or tool_name(tool_id), MAX_NAME_BYTES)
        parameters = obj(message, "parameters")
        titles = [text(parameters, key) for key in _TITLES if text(parameters, key)]
        title = titles[0] if titles else json.dumps(parameters, ensure_ascii=False) if parameters else tool
        turn.calls.append([call, tool_id, tool])
        begun = ToolCall(
            call=call,
            tool=tool,
            title=shorten(title, MAX_TITLE_BYTES),
            kind=_KINDS.get(tool, ToolKind.OTHER),
            locations=tuple(shorten(text(parameters, key), MAX_NAME_BYTES) for key in _PATHS if text(parameters, key)),
        )
        self._emit(session, turn, begun)

    def returned(self, session: HeadlessSession, turn: HeadlessTurn, message: Mapping[str, Any]) -> None:
        """A tool ended; one that was not announced is begun first."""
        tool_id = text(message, "tool_id")
        if all(found[1] != tool_id for found in turn.calls):
            self.called(session, turn, message)
        failed = text(message, "status") == "error"
        said = text(message, "output") or text(obj(message, "error"), "message")
        status = ToolStatus.FAILED if failed else ToolStatus.COMPLETED
        self._close(session, turn, next(found for found in turn.calls if found[1] == tool_id), status, said)

    def complained(self, session: HeadlessSession, turn: HeadlessTurn, message: Mapping[str, Any]) -> None:
        """A warning, or an error that the result will not repeat."""
        said = text(message, "message")
        if text(message, "severity") == "warning":
            self._emit(session, turn, Notice(code="CLI_WARNING", message=shorten(said, MAX_MESSAGE_BYTES)))
            return
        turn.remark = _remark(said)
        self._emit(session, turn, turn.remark)

    def close_calls(self, session: HeadlessSession, turn: HeadlessTurn) -> None:
        """The turn is over: what has not returned will not."""
        for call in list(turn.calls):
            self._close(session, turn, call, ToolStatus.CANCELLED, "")

    @staticmethod
    def judge_result(turn: HeadlessTurn, message: Mapping[str, Any]) -> tuple[StopReason, Error | None]:
        """What the result says; an error that was told already is not told again."""
        if text(message, "status") != "error":
            return StopReason.END_TURN, None
        said = text(obj(message, "error"), "message")
        if said:
            return StopReason.ERROR, failure_from_api(None, said)
        if turn.remark is not None:
            return StopReason.REFUSAL if turn.remark.reason == "MODEL_ANSWER_BLOCKED" else StopReason.ERROR, None
        return StopReason.ERROR, named_failure("CLI_ERROR", "The CLI reported an error without a message.")

    def _close(
        self, session: HeadlessSession, turn: HeadlessTurn, call: list[str], status: ToolStatus, said: str
    ) -> None:
        turn.calls.remove(call)
        kept, was_cut = cut(clean(said), MAX_OUTPUT_BYTES)
        self._emit(session, turn, ToolOutput(call=call[0], tool=call[2], status=status, text=kept, truncated=was_cut))

    def _emit(self, session: HeadlessSession, turn: HeadlessTurn, body: EventBody) -> None:
        self._outbox.emit(session.id, turn.id, body)


def _remark(said: str) -> Error:
    if _BLOCKED.search(said):
        return named_failure("MODEL_ANSWER_BLOCKED", said)
    if _EMPTY.search(said):
        return named_failure("MODEL_ANSWER_EMPTY", said, retryable=True)
    if _NO_FINISH.search(said):
        return named_failure("MODEL_STREAM_BROKEN", said, retryable=True)
    if _MALFORMED.search(said):
        return named_failure("MODEL_ANSWER_MALFORMED", said, retryable=True)
    return failure_from_api(None, said)
