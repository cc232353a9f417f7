"""Event bodies to JSON and back: `kind` and the fields, bytes as base64, enums by value.

The journal stores this form, `replay` prints it. Reading ignores fields it does not know and fills in the ones that are
missing from their defaults, so that a version can read what the one after it wrote.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from sandboxd.model import events

_KIND = re.compile(r"(?<!^)(?=[A-Z])")
_RENAMED: dict[tuple[type, str], str] = {(events.ToolCall, "kind"): "tool_kind"}
"""Fields whose name is taken: `kind` of an event says which one it is."""


class UnreadableEventError(ValueError):
    """A stored event is not one that this version can read."""


def kind_of(body: events.EventBody | type[events.EventBody]) -> str:
    """Name of the kind: the class's name in snake case, for example `tool_call`."""
    named: type = body if isinstance(body, type) else type(body)
    return _kind(named)


def encode_body(body: events.EventBody) -> dict[str, Any]:
    """An event body as a JSON object."""
    return {"kind": kind_of(body), **_encode_fields(body)}


def decode_body(value: Mapping[str, Any]) -> events.EventBody:
    """An event body from a JSON object.

    Raises:
        UnreadableEventError: The kind is unknown, a field has another type, or a field without default is missing.
    """
    kind = value.get("kind")
    body = _classes().get(kind) if isinstance(kind, str) else None
    if body is None:
        raise UnreadableEventError(f"unknown kind of event: {kind!r}")
    decoded: events.EventBody = _decode_fields(body, value)
    return decoded


def decode_error(value: Mapping[str, Any]) -> events.Error | None:
    """An error event from its JSON, None from an empty object."""
    body = decode_body(value) if value else None
    return body if isinstance(body, events.Error) else None


@cache
def _kind(body: type) -> str:
    return _KIND.sub("_", body.__name__).lower()


@cache
def _classes() -> Mapping[str, type]:
    return {_kind(body): body for body in typing.get_args(events.EventBody)}


def _encode_fields(value: Any) -> dict[str, Any]:  # Any: one of our own frozen dataclasses
    body = type(value)
    return {_name(body, field.name): _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _name(body: type, field: str) -> str:
    return _RENAMED.get((body, field), field)


def _encode(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if dataclasses.is_dataclass(value):
        return _encode_fields(value)
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return value


def _decode_fields(body: type, value: Mapping[str, Any]) -> Any:
    fields = {}
    for name, decode in _decoders(body).items():
        key = _name(body, name)
        if key in value:
            try:
                fields[name] = decode(value[key])
            except (TypeError, ValueError) as error:
                raise UnreadableEventError(f"{_kind(body)}.{key}: {error}") from error
    try:
        return body(**fields)
    except TypeError as error:
        raise UnreadableEventError(f"{_kind(body)}: {error}") from error


@cache
def _decoders(body: type) -> Mapping[str, Callable[[Any], Any]]:
    hints = typing.get_type_hints(body)
    return {field.name: _decoder(hints[field.name]) for field in dataclasses.fields(body)}


def _decoder(hint: Any) -> Callable[[Any], Any]:
    """How to read a value of this type; covers the types that event bodies are made of."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = _decoder(next(item for item in arguments if item is not type(None)))
        return lambda value: None if value is None else inner(value)
    if origin is Sequence:
        member = _decoder(arguments[0])
        return lambda value: tuple(member(item) for item in _exactly(list, value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return lambda value: _decode_fields(hint, _exactly(dict, value))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint
    if hint is bytes:
        return lambda value: base64.b64decode(_exactly(str, value), validate=True)
    return lambda value: _exactly(hint, value)


def _exactly(wanted: type, value: Any) -> Any:
    if type(value) is not wanted:
        raise TypeError(f"{wanted.__name__} expected, not {type(value).__name__}")
    return value
