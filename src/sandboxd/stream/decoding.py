"""One line to one JSON object, within bounds: what would cost too much is refused unparsed. Pure, never raises."""

from __future__ import annotations

import enum
import json
import math
import re
from typing import Any

from sandboxd.stream.limits import MAX_DEPTH, MAX_DIGITS, MAX_NODES

# Possessive throughout, and the last alternative matches at the end of the input too: linear for every input, an
# unterminated string full of escaped quotes included.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


class Rejection(enum.Enum):
    """Why a line is not an object that we can work with."""

    NOT_UTF8 = "NOT_UTF8"
    NOT_JSON = "NOT_JSON"
    NOT_PROTOCOL = "NOT_PROTOCOL"
    TOO_DEEP = "TOO_DEEP"
    TOO_COMPLEX = "TOO_COMPLEX"
    BAD_NUMBER = "BAD_NUMBER"
    DUPLICATE_KEY = "DUPLICATE_KEY"


class _RejectedError(ValueError):
    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.value)
        self.rejection = rejection


def decode_line(line: bytes) -> dict[str, Any] | Rejection:
    """Parse a line.

    Args:
        line: Without its line feed; at most `MAX_LINE_BYTES`.
    """
    try:
        decoded = line.decode("utf-8")
    except UnicodeDecodeError:
        return Rejection.NOT_UTF8
    costly = _too_costly(line)
    if costly is not None:
        return costly
    try:
        value = json.loads(
            decoded,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_constant,
            object_pairs_hook=_object,
        )
    except _RejectedError as error:
        return error.rejection
    except (ValueError, RecursionError):
        return Rejection.NOT_JSON
    return value if isinstance(value, dict) else Rejection.NOT_PROTOCOL


def _too_costly(line: bytes) -> Rejection | None:
    """Bound depth and number of nodes without parsing: brackets and commas outside of strings."""
    opening = line.count(b"[") + line.count(b"{")
    if opening <= MAX_DEPTH and line.count(b",") <= MAX_NODES:
        return None
    bare = _STRING.sub(b"", line)
    if bare.count(b"[") + bare.count(b"{") + bare.count(b",") > MAX_NODES:
        return Rejection.TOO_COMPLEX
    depth = 0
    for char in bare:
        if char in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return Rejection.TOO_DEEP
        elif char in b"]}":
            depth -= 1
    return None


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _RejectedError(Rejection.BAD_NUMBER)
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits) if len(digits) <= MAX_DIGITS else math.inf
    if math.isinf(value):
        raise _RejectedError(Rejection.BAD_NUMBER)
    return value


def _constant(_name: str) -> None:
    raise _RejectedError(Rejection.BAD_NUMBER)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _RejectedError(Rejection.DUPLICATE_KEY)
    return value
