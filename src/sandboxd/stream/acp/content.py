"""Reading the payloads of ACP's tool messages: texts, diffs, options, names; cut to their limits. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandboxd.model.events import Diff, PermissionOption, PermissionOptionKind, ToolKind
from sandboxd.stream.cutting import clean, cut, shorten
from sandboxd.stream.limits import MAX_NAME_BYTES, MAX_NAMES, MAX_OPTIONS, MAX_OUTPUT_BYTES, MAX_TITLE_BYTES
from sandboxd.stream.reading import obj, objects, text

_GENERATED = re.compile(r"(.+?)[-_]\d{10,}[-_]\d+", re.DOTALL)
"""`NAME-<ms>-<n>` and `NAME_<ms>_<n>`: ids that the CLI makes where the API gave none."""
_RESOLVE_PROMPT = "resolve-prompt-"
"""Prefix of the ids under which the CLI asks whether it may read a file that a prompt links to."""
_ALLOWING = frozenset({PermissionOptionKind.ALLOW_ONCE, PermissionOptionKind.ALLOW_ALWAYS})


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContent:
    """What a tool says, or wants to do."""

    text: str
    diffs: Sequence[Diff]
    truncated: bool


def tool_name(tool_call_id: str) -> str:
    """The tool's name, which ACP has only in the id: `NAME__ID`, `NAME-<ms>-<n>` or `NAME_<ms>_<n>`."""
    name, separator, _ = tool_call_id.partition("__")
    if separator and name:
        return shorten(name, MAX_NAME_BYTES)
    if tool_call_id.startswith(_RESOLVE_PROMPT):
        return "resolve_prompt"
    generated = _GENERATED.fullmatch(tool_call_id)
    return shorten(generated[1] if generated else tool_call_id, MAX_NAME_BYTES)


def ends_with_its_permission(tool_call_id: str) -> bool:
    """Tell whether nothing follows the answer: the CLI reads a linked file without an update."""
    return tool_call_id.startswith(_RESOLVE_PROMPT)


def tool_kind(message: Mapping[str, Any]) -> ToolKind:
    """The tool's kind; OTHER where it is missing or new to us."""
    kind = text(message, "kind")
    return ToolKind(kind) if kind in _TOOL_KINDS else ToolKind.OTHER


_TOOL_KINDS = frozenset(kind.value for kind in ToolKind)


def tool_title(message: Mapping[str, Any]) -> str:
    """The title for people."""
    return shorten(text(message, "title"), MAX_TITLE_BYTES)


def tool_locations(message: Mapping[str, Any]) -> Sequence[str]:
    """The paths that a call touches."""
    return names(location.get("path") for location in objects(message, "locations"))


def tool_content(message: Mapping[str, Any]) -> ToolContent:
    """Texts and diffs of a tool message, together within the limit of one event."""
    room = MAX_OUTPUT_BYTES
    truncated = False
    said: list[str] = []
    diffs: list[Diff] = []

    def fit(value: str) -> str:
        nonlocal room, truncated
        kept, was_cut = cut(clean(value), room)
        room -= len(kept.encode())
        truncated = truncated or was_cut
        return kept

    for item in objects(message, "content"):
        if not room:
            truncated = True
            break
        if text(item, "type") == "diff":
            old = item.get("oldText")
            diffs.append(
                Diff(
                    path=shorten(text(item, "path"), MAX_NAME_BYTES),
                    old_text=fit(old) if isinstance(old, str) else None,
                    new_text=fit(text(item, "newText")),
                    kind=shorten(text(obj(item, "_meta"), "kind"), MAX_NAME_BYTES),
                )
            )
        else:
            said.append(fit(_said(item)))
    return ToolContent(text="\n".join(said), diffs=tuple(diffs), truncated=truncated)


def _said(item: Mapping[str, Any]) -> str:
    """The text of a content item, or a remark where it is of another kind."""
    block = obj(item, "content")
    if text(block, "type") == "text":
        return text(block, "text")
    kind = text(block, "type") or text(item, "type") or "unknown"
    return f"[{kind} {text(block, 'mimeType') or text(block, 'uri')}".rstrip() + "]"


def permission_options(params: Mapping[str, Any]) -> Sequence[PermissionOption]:
    """The answers that a person can give."""
    return [
        PermissionOption(
            id=option_id, label=shorten(text(option, "name") or option_id, MAX_NAME_BYTES), kind=_kind(option)
        )
        for option in objects(params, "options")[:MAX_OPTIONS]
        if (option_id := clean(text(option, "optionId")))
    ]


def allows(option: PermissionOption) -> bool:
    """Tell whether the option lets the tool run."""
    return option.kind in _ALLOWING


def _kind(option: Mapping[str, Any]) -> PermissionOptionKind:
    """The option's kind; one that we do not know is taken for a refusal, which is never unsafe."""
    kind = text(option, "kind")
    return PermissionOptionKind(kind) if kind in _OPTION_KINDS else PermissionOptionKind.REJECT_ONCE


_OPTION_KINDS = frozenset(kind.value for kind in PermissionOptionKind)


def names(values: Any) -> Sequence[str]:
    """The texts of an iterable of whatever JSON holds, bounded in number and length."""
    found = [shorten(value, MAX_NAME_BYTES) for value in values if isinstance(value, str)]
    return tuple(found[:MAX_NAMES])
