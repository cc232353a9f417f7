"""A quick look at whether a message keeps the contract's rules, so that good requests do not wait for CEL.

protovalidate interprets CEL in Python: 5 to 15 ms for one of our requests, and the event loop stands still meanwhile.
The rules that our protos use are simple, so they are compiled here into plain checks. They only ever say "fine" or "ask
protovalidate", which stays the authority and writes every report; what is not known here is always asked. A test holds
that both agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import re2  # type: ignore[import-untyped]
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2

Check = Callable[[Any], bool]
"""Tells whether a value is fine. Any: a field's value, of whatever type."""
_Known = Mapping[str, Callable[[Any], Check]]

KNOWN_CEL: Final[Mapping[str, Check]] = {
    "prompt.not_empty": lambda prompt: bool(prompt.text or prompt.attachments),
}
"""The rules of our protos that are written in CEL, by id."""


class UnknownRuleError(Exception):
    """A rule that this module does not know; its message is always for protovalidate."""


class QuickRules:
    """Checks messages of any type; compiled by type at first sight."""

    def __init__(self) -> None:
        self._compiled: dict[str, Check | None] = {}

    def pass_for_sure(self, message: Message) -> bool:
        """Tell whether a message keeps all rules; False means that protovalidate has to say."""
        check = self._of(message.DESCRIPTOR)
        return check is not None and check(message)

    def _of(self, kind: Any) -> Check | None:  # Any: descriptors have two types, of C and of Python
        if kind.full_name not in self._compiled:
            self._compiled[kind.full_name] = None  # a type that holds itself is for protovalidate
            try:
                self._compiled[kind.full_name] = _all_of(list(self._message_checks(kind)))
            except UnknownRuleError:
                self._compiled[kind.full_name] = None
        return self._compiled[kind.full_name]

    def _message_checks(self, kind: Any) -> Iterator[Check]:
        rules = kind.GetOptions().Extensions[validate_pb2.message]
        for field, _ in rules.ListFields():
            if field.name != "cel":
                raise UnknownRuleError(field.full_name)
        for cel in rules.cel:
            if cel.id not in KNOWN_CEL:
                raise UnknownRuleError(cel.id)
            yield KNOWN_CEL[cel.id]
        for oneof in kind.oneofs:
            if oneof.GetOptions().Extensions[validate_pb2.oneof].required:
                yield _oneof_is_set(oneof.name)
        for field in kind.fields:
            yield from self._field_checks(field)

    def _field_checks(self, field: FieldDescriptor) -> Iterator[Check]:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        for part, _ in rules.ListFields():
            if part.name not in {"required", "ignore", "string", "bytes", "enum", "int32", "int64", "repeated", "map"}:
                raise UnknownRuleError(part.full_name)
        skip_zero = rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE
        if rules.ignore not in {validate_pb2.IGNORE_UNSPECIFIED, validate_pb2.IGNORE_IF_ZERO_VALUE}:
            raise UnknownRuleError("ignore")
        if rules.required:
            if not field.has_presence:
                raise UnknownRuleError("required")
            yield _is_set(field.name)
        checks = list(self._value_checks(field, rules))
        if checks:
            yield _field(field.name, _all_of(checks), if_set=field.has_presence, skip_zero=skip_zero)

    def _value_checks(self, field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Iterator[Check]:
        kind = rules.WhichOneof("type")
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            keys = [*self._scalar_checks(entry["key"], rules.map.keys)]
            values = [*self._scalar_checks(entry["value"], rules.map.values), *self._nested(entry["value"])]
            yield from _checks_of(rules.map, _MAP, leave={"keys", "values"})
            if keys or values:
                yield _entries(_all_of(keys), _all_of(values))
        elif field.is_repeated:
            items = [*self._scalar_checks(field, rules.repeated.items), *self._nested(field)]
            yield from _checks_of(rules.repeated, _REPEATED, leave={"items"})
            if items:
                yield _items(_all_of(items))
        else:
            if kind in {"map", "repeated"}:
                raise UnknownRuleError(field.full_name)
            yield from self._scalar_checks(field, rules)
            yield from self._nested(field)

    def _scalar_checks(self, field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Iterator[Check]:
        match rules.WhichOneof("type"):
            case None:
                return
            case "string":
                yield from _checks_of(rules.string, _STRING)
            case "bytes":
                yield from _checks_of(rules.bytes, _BYTES)
            case "int32" | "int64" as kind:
                yield from _checks_of(getattr(rules, kind), _INTEGER)
            case "enum":
                numbers = frozenset(field.enum_type.values_by_number if field.enum_type else ())
                yield from _checks_of(rules.enum, {**_ENUM, "defined_only": lambda _: numbers.__contains__})
            case other:
                raise UnknownRuleError(other)

    def _nested(self, field: FieldDescriptor) -> Iterator[Check]:
        if field.message_type is not None:
            check = self._of(field.message_type)
            if check is None:
                raise UnknownRuleError(field.message_type.full_name)
            yield check


def _pattern(text: str) -> Check:
    compiled = re2.compile(text)
    return lambda value: compiled.search(value) is not None


_STRING: Final[_Known] = {
    "pattern": _pattern,
    "min_len": lambda limit: lambda value: len(value) >= limit,
    "max_len": lambda limit: lambda value: len(value) <= limit,
    "max_bytes": lambda limit: lambda value: len(value) * 4 <= limit or len(value.encode()) <= limit,
    "in": lambda allowed: frozenset(allowed).__contains__,
}
_BYTES: Final[_Known] = {
    "min_len": lambda limit: lambda value: len(value) >= limit,
    "max_len": lambda limit: lambda value: len(value) <= limit,
}
_INTEGER: Final[_Known] = {
    "gte": lambda limit: lambda value: value >= limit,
    "lte": lambda limit: lambda value: value <= limit,
}
_ENUM: Final[_Known] = {"not_in": lambda refused: lambda value: value not in refused}
_REPEATED: Final[_Known] = {
    "min_items": lambda limit: lambda value: len(value) >= limit,
    "max_items": lambda limit: lambda value: len(value) <= limit,
    "unique": lambda _: lambda value: len(set(value)) == len(value),
}
_MAP: Final[_Known] = {"max_pairs": lambda limit: lambda value: len(value) <= limit}


def _checks_of(rules: Message, known: _Known, *, leave: frozenset[str] | set[str] = frozenset()) -> Iterator[Check]:
    for field, value in rules.ListFields():
        if field.name in leave:
            continue
        if field.name not in known:
            raise UnknownRuleError(field.full_name)
        yield known[field.name](value)


def _all_of(checks: list[Check]) -> Check:
    if len(checks) == 1:
        return checks[0]
    return lambda value: all(check(value) for check in checks)


def _field(name: str, check: Check, *, if_set: bool, skip_zero: bool) -> Check:
    if if_set:
        return lambda message: not message.HasField(name) or check(getattr(message, name))
    if skip_zero:
        return lambda message: not getattr(message, name) or check(getattr(message, name))
    return lambda message: check(getattr(message, name))


def _is_set(name: str) -> Check:
    return lambda message: bool(message.HasField(name))


def _oneof_is_set(name: str) -> Check:
    return lambda message: message.WhichOneof(name) is not None


def _items(check: Check) -> Check:
    return lambda values: all(check(value) for value in values)


def _entries(keys: Check, values: Check) -> Check:
    return lambda entries: all(keys(key) and values(value) for key, value in entries.items())
