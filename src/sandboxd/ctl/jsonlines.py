"""The API's messages as JSON for programs: one object a line, field names as in the protos, every field present.

It is protobuf's JSON with one difference: 64-bit integers are numbers, as programs expect of token counts. Protobuf's
own parsers read both.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.json_format import MessageToDict

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message


def to_line(message: Message) -> str:
    """Return the message as one line without its end. Control characters are escaped, as JSON wants."""
    return json.dumps(to_dict(message), ensure_ascii=True, separators=(",", ":"))


def to_dict(message: Message) -> dict[str, Any]:  # Any: it is JSON
    """Return the message as what `json.dumps` takes."""
    plain = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return _with_numbers(plain, cast("Descriptor", message.DESCRIPTOR))


def _with_numbers(plain: dict[str, Any], kind: Descriptor) -> dict[str, Any]:
    for name, field in kind.fields_by_name.items():
        if name in plain:
            plain[name] = _field(plain[name], field)
    return plain


def _field(value: Any, field: FieldDescriptor) -> Any:
    kind = field.message_type
    if kind is not None and (kind.GetOptions().map_entry or kind.file.package == "google.protobuf"):
        return value  # labels, moments, spans: strings already
    if isinstance(value, list):
        return [_single(each, field) for each in value]
    return _single(value, field)


def _single(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        return _with_numbers(value, field.message_type)
    if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
        return int(value)
    return value
