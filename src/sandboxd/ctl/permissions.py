"""The options of a permission question: their order for people, and what a person's word means."""

from __future__ import annotations

from collections.abc import Iterable

from sandboxd.v1 import stream_pb2

Kind = stream_pb2.PermissionOption.Kind
ALLOW = (stream_pb2.PermissionOption.KIND_ALLOW_ONCE, stream_pb2.PermissionOption.KIND_ALLOW_ALWAYS)
REJECT = (stream_pb2.PermissionOption.KIND_REJECT_ONCE, stream_pb2.PermissionOption.KIND_REJECT_ALWAYS)


_ORDER = (*ALLOW, *REJECT)


def in_order(request: stream_pb2.PermissionRequest) -> list[stream_pb2.PermissionOption]:
    """Return the options as they are numbered for people: the smallest yes first, whatever order the CLI has."""
    known = {kind: number for number, kind in enumerate(_ORDER)}
    return sorted(request.options, key=lambda option: known.get(option.kind, len(known)))


def first_of(request: stream_pb2.PermissionRequest, kinds: Iterable[Kind.ValueType]) -> str:
    """Return the id of the first option of one of these kinds, best kind first; empty where there is none."""
    for kind in kinds:
        for option in request.options:
            if option.kind == kind:
                return option.option
    return ""


def understand(said: str, request: stream_pb2.PermissionRequest) -> str | None:
    """Return the option that a person's word means, None where it means none."""
    word = said.strip().lower()
    if word.isascii() and word.isdigit():
        number = int(word)
        options = in_order(request)
        return options[number - 1].option if 1 <= number <= len(options) else None
    if word in ("y", "yes"):
        return first_of(request, ALLOW[:1]) or None
    if word in ("n", "no"):
        return first_of(request, REJECT)
    for option in request.options:
        if word and word in (option.option.lower(), option.label.lower()):
            return option.option
    return None
