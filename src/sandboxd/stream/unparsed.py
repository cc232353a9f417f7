"""Bytes that nobody understood, as an event: whole up to a limit, without keys, with the reason. Pure."""

from __future__ import annotations

import hashlib

from sandboxd.model.events import Unparsed
from sandboxd.stream.framing import LongLine
from sandboxd.stream.limits import HEAD_BYTES, MAX_UNPARSED_BYTES
from sandboxd.stream.redaction import redact_bytes

LINE_TOO_LONG = "LINE_TOO_LONG"
LINE_CUT = "LINE_CUT"
UNKNOWN_SESSION = "UNKNOWN_SESSION"
UNKNOWN_METHOD = "UNKNOWN_METHOD"
UNKNOWN_UPDATE = "UNKNOWN_UPDATE"
UNKNOWN_CONTENT = "UNKNOWN_CONTENT"
UNKNOWN_ID = "UNKNOWN_ID"
SENT_NOT_JSON = "SENT_NOT_JSON"


def unparsed(data: bytes | LongLine, why: str) -> Unparsed:
    """Keep the bytes; size and digest are those of the original, before redaction."""
    if isinstance(data, LongLine):
        return Unparsed(data=redact_bytes(data.head), size=data.size, why=why, sha256=data.sha256)
    if len(data) <= MAX_UNPARSED_BYTES:
        return Unparsed(data=redact_bytes(data), size=len(data), why=why)
    return Unparsed(
        data=redact_bytes(data[:HEAD_BYTES]), size=len(data), why=why, sha256=hashlib.sha256(data).hexdigest()
    )
