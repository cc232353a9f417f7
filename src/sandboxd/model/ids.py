"""Identifiers: typed strings of a prefix and 26 lower-case ULID characters, so that they sort by time of birth.

The ULID layout (48 bits of milliseconds, 80 bits of randomness, Crockford base 32) is that of the ULID specification;
lower case keeps ids usable as DNS labels and object names.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NewType

ClientId = NewType("ClientId", str)
FreelancerId = NewType("FreelancerId", str)
SandboxId = NewType("SandboxId", str)
IncarnationId = NewType("IncarnationId", str)
SessionId = NewType("SessionId", str)
TurnId = NewType("TurnId", str)
RequestId = NewType("RequestId", str)

ENTROPY_BYTES = 10
"""Random bytes that one id takes: 80 bits."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9_.@]{0,61}[a-z0-9])?")
_ID = re.compile(r"(sbx|inc|ses|trn|prc|req|prm|tol|evt|use|aud|era|gen|bak|rst)-[0-7][0-9a-hjkmnp-tv-z]{25}")


def make_id(prefix: str, *, at: datetime, entropy: bytes) -> str:
    """Build an id from its moment and its randomness.

    Args:
        prefix: What kind of thing it names, for example `sbx`.
        at: Moment of birth, aware.
        entropy: Exactly `ENTROPY_BYTES` random bytes.

    Raises:
        ValueError: The entropy has another length, or the moment is not aware.
    """
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"an id takes {ENTROPY_BYTES} bytes of entropy, not {len(entropy)}")
    if at.tzinfo is None:
        raise ValueError("the moment of an id must be aware")
    number = (int(at.timestamp() * 1000) << 80) | int.from_bytes(entropy, "big")
    return f"{prefix}-" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -5, -5))


def time_of_id(text: str) -> datetime:
    """Return the moment of an id's birth.

    Raises:
        ValueError: It is no id.
    """
    if _ID.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no id")
    milliseconds = 0
    for digit in text.partition("-")[2][:10]:
        milliseconds = milliseconds << 5 | _ALPHABET.index(digit)
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def is_name(text: str) -> bool:
    """Tell whether a text can be the name of a client or a freelancer, which their platform chooses."""
    return _NAME.fullmatch(text) is not None


def is_id(text: str, prefix: str) -> bool:
    """Tell whether a text is a well-formed id of that kind."""
    return text.startswith(f"{prefix}-") and _ID.fullmatch(text) is not None
