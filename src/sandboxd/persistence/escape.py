"""Text and JSON that PostgreSQL cannot hold as it is, made storable without loss.

`text` and `jsonb` refuse U+0000, and UTF-8 has no lone surrogates, but a CLI's JSON may carry both. Each such character
becomes U+E000 and its four hexadecimal digits; U+E000 itself (private use) is treated the same, so that every text
comes back exactly as it was.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_MARK: Final = "\ue000"
_TROUBLE: Final = re.compile("[\x00\ue000\ud800-\udfff]")
_ESCAPED: Final = re.compile("\ue000([0-9a-f]{4})")
_TROUBLE_IN_JSON: Final = re.compile(r"\\u0000|[\ue000\ud800-\udfff]")
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def escape(text: str) -> str:
    """Make a text storable; most are as they are."""
    return _TROUBLE.sub(_to_mark, text) if _TROUBLE.search(text) else text


def unescape(text: str) -> str:
    """Undo `escape`."""
    return _ESCAPED.sub(_from_mark, text) if _MARK in text else text


def dump_json(value: Any) -> str:  # Any: JSON has no better type
    """Encode JSON for a `jsonb` column.

    Raises:
        TypeError, ValueError: The value is not JSON.
    """
    text = _encode(value)
    return _encode(_walk(value, escape)) if _TROUBLE_IN_JSON.search(text) else text


def load_json(text: str) -> Any:  # Any: JSON has no better type
    """Decode what `dump_json` encoded."""
    value = json.loads(text)
    return _walk(value, unescape) if _MARK in text else value


def _walk(value: Any, change: Any) -> Any:  # Any: JSON has no better type
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _walk(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(item, change) for item in value]
    return value


def _to_mark(match: re.Match[str]) -> str:
    return f"{_MARK}{ord(match.group()):04x}"


def _from_mark(match: re.Match[str]) -> str:
    return chr(int(match.group(1), 16))
