"""Recordings of a CLI, told apart and read tolerantly: what was said, by whom, and when. Pure.

An ACP recording has one JSON object a line: `{"t": seconds, "dir": "c2a" | "a2c" | "eof", "msg": …}`. Recorders
differ, so the message may also be a text (the line as it was), or stand under another name; raw JSON-RPC lines count
as well.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sandboxd.stream.decoding import Rejection, decode_line
from sandboxd.stream.headless.observer import TYPES
from sandboxd.stream.reading import text


class RecordingFormat(enum.Enum):
    """What a recording can be."""

    ACP = "acp"
    STREAM_JSON = "stream-json"


class Direction(enum.Enum):
    """Who said something."""

    CLIENT = "c2a"
    CLI = "a2c"
    END = "eof"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One thing that was said."""

    direction: Direction
    line: bytes
    """The line as it was, without its line feed."""
    time: float | None = None
    """Seconds since the recording began; None where it does not say."""
    raw: bool = False
    """Output without a recording around it: what the client sent may be missing."""


_CLIENT_METHODS = frozenset(
    {
        "initialize",
        "authenticate",
        "session/new",
        "session/load",
        "session/prompt",
        "session/cancel",
        "session/set_mode",
        "session/set_model",
    }
)
_BODIES = ("msg", "message", "raw", "line", "text", "data")
_DIRECTIONS = {direction.value: direction for direction in Direction}


def sniff(lines: Iterable[bytes]) -> RecordingFormat:
    """Tell the format from the first lines of a recording; ACP where they say nothing."""
    for line in lines:
        value = decode_line(line)
        if isinstance(value, Rejection):
            continue
        if "dir" in value or "jsonrpc" in value or isinstance(value.get("msg"), dict):
            return RecordingFormat.ACP
        if text(value, "type") in TYPES:
            return RecordingFormat.STREAM_JSON
    return RecordingFormat.ACP


def read_record(line: bytes) -> Record | Rejection:
    """Read one line of an ACP recording; a line that is no record is answered with the reason."""
    value = decode_line(line)
    if isinstance(value, Rejection):
        return value
    if _is_rpc(value):
        return Record(direction=_guess(value), line=line, raw=True)
    time = value.get("t")
    seconds = float(time) if isinstance(time, (int, float)) and not isinstance(time, bool) else None
    direction = _DIRECTIONS.get(text(value, "dir"))
    if direction is Direction.END:
        return Record(direction=direction, line=b"", time=seconds)
    body = next((value[key] for key in _BODIES if value.get(key) is not None), None)
    if body is None or isinstance(body, (int, float)):
        return Rejection.NOT_PROTOCOL
    said = _as_line(body)
    if direction is None:
        inner = decode_line(said)
        direction = _guess(inner) if isinstance(inner, dict) else Direction.CLI
    return Record(direction=direction, line=said, time=seconds)


def _is_rpc(value: Mapping[str, Any]) -> bool:
    return "dir" not in value and ("jsonrpc" in value or ("method" in value and "params" in value))


def _guess(message: Mapping[str, Any]) -> Direction:
    return Direction.CLIENT if text(message, "method") in _CLIENT_METHODS else Direction.CLI


def _as_line(body: Any) -> bytes:
    """The message as the line that it was; bytes that were no UTF-8 come back as what Python made of them."""
    if not isinstance(body, str):
        return json.dumps(body, separators=(",", ":")).encode()
    said = body.rstrip("\r\n")
    try:
        return said.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return said.encode("utf-8", "surrogatepass")
