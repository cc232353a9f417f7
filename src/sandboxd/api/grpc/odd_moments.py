"""Durations and timestamps that are none: protobuf lets any two numbers pass, and whoever converts them raises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from sandboxd.model.errors import FieldViolation

_SECOND: Final = 10**9
_LONGEST: Final = 315_576_000_000
"""Seconds of a duration: ten thousand years."""
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
"""Seconds of a timestamp: the years 1 to 9999."""


def odd_moments(message: Message, path: str = "") -> Iterator[FieldViolation]:
    """Name each field, at any depth, that is no duration or no timestamp although its type says so."""
    for field, value in message.ListFields():
        name = f"{path}{field.name}"
        if isinstance(value, Duration):
            if not _is_duration(value):
                yield FieldViolation(field=name, description="is no duration: nanos and seconds of one sign, in range")
        elif isinstance(value, Timestamp):
            if not (_FIRST <= value.seconds <= _LAST and 0 <= value.nanos < _SECOND):
                yield FieldViolation(field=name, description="is no timestamp of the years 1 to 9999")
        elif isinstance(value, Message):
            yield from odd_moments(value, f"{name}.")
        elif hasattr(value, "__iter__") and not isinstance(value, (str, bytes)):
            for index, one in enumerate(value.values() if hasattr(value, "values") else value):
                if isinstance(one, Message):
                    yield from odd_moments(one, f"{name}[{index}].")


def _is_duration(value: Duration) -> bool:
    within = abs(value.seconds) <= _LONGEST and abs(value.nanos) < _SECOND
    return within and not value.seconds * value.nanos < 0
