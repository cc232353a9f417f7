"""The quick checks and protovalidate agree about every message."""

from typing import Any

import protovalidate
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.api.grpc.quick_rules import QuickRules
from sandboxd.v1 import budget_pb2, package_pb2, price_pb2, sandbox_pb2, session_pb2, stream_pb2, usage_pb2

REQUESTS = [
    GetMessageClass(method.input_type)
    for module in (budget_pb2, package_pb2, price_pb2, sandbox_pb2, session_pb2, usage_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
VALIDATOR: Any = protovalidate.Validator()  # type: ignore[no-untyped-call]
QUICK = QuickRules()

TEXTS = st.one_of(
    st.sampled_from(
        [
            "", "default", "yolo", "create_time", "create_time desc", "request-1", "sandboxes/sbx-1", "a", "a.b@c",
            "sandboxes/sbx-1/sessions/ses-1", "sandboxes/sbx-1\n", "A", "-", "a/b", "image/png", "text/plain", "x" * 64,
            "x" * 256, "é" * 100, "gemini-2.5-flash", "request-1\n",
        ]
    ),
    st.text(max_size=12),
)  # fmt: skip


def values(field: Any) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return st.binary(max_size=20) if field.type == FieldDescriptor.TYPE_BYTES else TEXTS
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_ENUM:
            # protovalidate 1.2 does not look at `defined_only` of a list's items; the API has rules of its own there.
            return (
                st.sampled_from(sorted(field.enum_type.values_by_number)) if field.is_repeated else st.integers(0, 20)
            )
        case FieldDescriptor.CPPTYPE_MESSAGE:
            return messages(GetMessageClass(field.message_type))
        case _:
            return st.integers(-3, 2000)


@st.composite
def messages(draw: st.DrawFn, kind: type[Message]) -> Message:
    made: Any = kind()
    for field in kind.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(made, field.name).update(draw(st.dictionaries(TEXTS, TEXTS, max_size=34)))
        elif field.is_repeated:
            drawn = draw(st.lists(values(field), max_size=6))
            getattr(made, field.name).extend(drawn)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(draw(values(field)))
        else:
            setattr(made, field.name, draw(values(field)))
    return made  # type: ignore[no-any-return]  # Any, so that fields can be set by name


@pytest.mark.parametrize("kind", [*REQUESTS, stream_pb2.StreamRequest], ids=lambda kind: kind.DESCRIPTOR.name)
def test_the_quick_checks_pass_what_protovalidate_passes_and_nothing_else(kind: type[Message]) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(messages(kind))
    def agree(message: Message) -> None:
        assert QUICK.pass_for_sure(message) == (not VALIDATOR.collect_violations(message))

    agree()


def test_large_texts_and_attachments_are_judged_alike() -> None:
    attachment = stream_pb2.Attachment(file_name="a", mime_type="image/png", data=b"x")
    for prompt in (
        stream_pb2.Prompt(text="é" * (1 << 19)),
        stream_pb2.Prompt(text="é" * (1 << 19) + "x"),
        stream_pb2.Prompt(attachments=[attachment] * 16),
        stream_pb2.Prompt(attachments=[attachment] * 17),
        stream_pb2.Prompt(attachments=[stream_pb2.Attachment(file_name="a", mime_type="a/b", data=b"x" * 7340033)]),
        stream_pb2.Prompt(),
    ):
        message = stream_pb2.StreamRequest(request_id="request-1", prompt=prompt)

        assert QUICK.pass_for_sure(message) == (not VALIDATOR.collect_violations(message))


def test_a_message_with_a_rule_that_is_not_known_is_never_passed_quickly() -> None:
    from buf.validate import validate_pb2  # noqa: PLC0415  only here

    # The rules' own messages are full of CEL.
    assert not QUICK.pass_for_sure(validate_pb2.FieldRules())
