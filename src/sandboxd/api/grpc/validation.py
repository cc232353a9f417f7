"""The rules of the contract: protovalidate's, and the few that it cannot say. All violations come together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import Message

from buf.validate import validate_pb2
from sandboxd.api.grpc.codec_budget import budget_rules
from sandboxd.api.grpc.codec_lifecycle import awake_rules, lifecycle_rules
from sandboxd.api.grpc.codec_live_usage import resource_rules, watch_rules
from sandboxd.api.grpc.odd_moments import odd_moments
from sandboxd.api.grpc.quick_rules import QuickRules
from sandboxd.model.errors import FieldViolation, InvalidRequestError
from sandboxd.model.session import MAX_PROMPT_BYTES
from sandboxd.v1 import budget_pb2, client_pb2, sandbox_pb2, stream_pb2, usage_pb2

if TYPE_CHECKING:
    import protovalidate

UPDATABLE: Final = ("display_name", "labels", "model", "approval_mode", "tier", "lifecycle", "keep_awake_until")
"""Fields of a sandbox that Update can change."""
MAX_VIOLATIONS: Final = 64
"""Most violations of one answer: the details travel in trailers, which have a limit."""

UNDECODABLE: Final = "the bytes are not a message of this type"


class RequestRules:
    """Checks messages. One instance serves all calls: its compiled rules are cached by message type."""

    def __init__(self) -> None:
        self._quick = QuickRules()
        self._reporting = asyncio.Lock()
        self._validator: protovalidate.Validator | None = None

    async def violations(self, message: Message) -> list[FieldViolation]:
        """Return every rule that a message breaks."""
        found: list[FieldViolation] = []
        if not self._quick.pass_for_sure(message):
            # Milliseconds of CEL: beside the event loop, one at a time, so that bad requests slow down only each other.
            async with self._reporting:
                found = await asyncio.to_thread(self._report, message)
        if more := MORE_RULES.get(type(message)):
            found.extend(more(message))
        return found[:MAX_VIOLATIONS]

    async def check(self, message: Message) -> None:
        """Refuse a message that breaks rules.

        Raises:
            InvalidRequestError: With all violations.
        """
        if found := await self.violations(message):
            raise refusal(found)

    def _report(self, message: Message) -> list[FieldViolation]:
        if odd := list(odd_moments(message)):
            return odd  # of these no rule can say anything
        if self._validator is None:
            # Takes a second to import, and a service without bad requests never needs it.
            self._validator = import_module("protovalidate").Validator()
        return [_violation(one.proto) for one in self._validator.collect_violations(message)]


def refusal(violations: list[FieldViolation]) -> InvalidRequestError:
    """Make the error for violations: its text names the first, its details hold them all."""
    first = violations[0]
    where = f"{first.field}: " if first.field else ""
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return InvalidRequestError(
        f"The request breaks the rules of the contract. {where}{first.description}{more}.", violations=violations
    )


def _update_rules(message: sandbox_pb2.UpdateRequest) -> Iterator[FieldViolation]:
    if message.HasField("update_mask") and not message.update_mask.paths:
        yield FieldViolation(field="update_mask.paths", description="must name at least one field")
    for index, path in enumerate(message.update_mask.paths):
        if path not in UPDATABLE:
            yield FieldViolation(
                field=f"update_mask.paths[{index}]",
                description=f"must be one of {', '.join(UPDATABLE)}, not {path[:64]!r}",
            )
    if message.HasField("sandbox") and not message.sandbox.name.startswith("sandboxes/"):
        yield FieldViolation(field="sandbox.name", description="must be `sandboxes/{sandbox}`")
    yield from lifecycle_rules(message.sandbox.lifecycle, field="sandbox.lifecycle")
    yield from awake_rules(message.sandbox)


def _create_rules(message: sandbox_pb2.CreateRequest) -> Iterator[FieldViolation]:
    yield from lifecycle_rules(message.sandbox.lifecycle, field="sandbox.lifecycle")
    yield from awake_rules(message.sandbox)


def _client_rules(message: client_pb2.CreateClientRequest | client_pb2.UpdateClientRequest) -> Iterator[FieldViolation]:
    yield from lifecycle_rules(message.client.policy.lifecycle, field="client.policy.lifecycle")


def _stream_rules(message: stream_pb2.StreamRequest) -> Iterator[FieldViolation]:
    command = message.WhichOneof("command")
    needs_id = command not in {None, "open", "ping"} or (command == "open" and not message.open.session)
    if needs_id and not message.request_id:
        yield FieldViolation(field="request_id", description="must be given: it makes the command idempotent")
    if command == "open" and message.open.session and not message.open.session.startswith(f"{message.open.sandbox}/"):
        yield FieldViolation(field="open.session", description="must be a session of `open.sandbox`")
    if command == "prompt" and sum(len(one.data) for one in message.prompt.attachments) > MAX_PROMPT_BYTES:
        yield FieldViolation(
            field="prompt.attachments", description=f"must be at most {MAX_PROMPT_BYTES} bytes together"
        )


def _filter_rules(message: sandbox_pb2.ListRequest | sandbox_pb2.WatchRequest) -> Iterator[FieldViolation]:
    for index, state in enumerate(message.filter.states):
        if state not in sandbox_pb2.SandboxState.values():
            yield FieldViolation(field=f"filter.states[{index}]", description="must be a state of the contract")


def _summary_rules(message: usage_pb2.SummarizeUsageRequest) -> Iterator[FieldViolation]:
    for index, dimension in enumerate(message.group_by):
        if dimension not in usage_pb2.UsageDimension.values():
            yield FieldViolation(field=f"group_by[{index}]", description="must be a dimension of the contract")


MORE_RULES: Final[Mapping[type[Message], Callable[[Any], Iterator[FieldViolation]]]] = {
    # Any: each function takes the message of its own key.
    budget_pb2.SetBudgetRequest: budget_rules,
    client_pb2.CreateClientRequest: _client_rules,
    client_pb2.UpdateClientRequest: _client_rules,
    sandbox_pb2.CreateRequest: _create_rules,
    sandbox_pb2.UpdateRequest: _update_rules,
    # protovalidate 1.2 for Python does not look at `defined_only` of a list's items.
    sandbox_pb2.ListRequest: _filter_rules,
    sandbox_pb2.WatchRequest: _filter_rules,
    usage_pb2.SummarizeUsageRequest: _summary_rules,
    usage_pb2.SummarizeResourcesRequest: resource_rules,
    usage_pb2.WatchUsageRequest: watch_rules,
    stream_pb2.StreamRequest: _stream_rules,
}
"""Rules between fields, and about bytes in sum, which protovalidate's standard rules cannot express."""


def _violation(violation: validate_pb2.Violation) -> FieldViolation:
    description = violation.message or violation.rule_id
    # protovalidate begins its texts with the rule's name: `string.pattern does not match …`.
    return FieldViolation(field=_path(violation.field), description=description)


def _path(path: validate_pb2.FieldPath) -> str:
    text = ""
    for element in path.elements:
        text += f".{element.field_name}" if text else element.field_name
        match element.WhichOneof("subscript"):
            case "index":
                text += f"[{element.index}]"
            case "string_key":
                text += f'["{element.string_key[:64]}"]'
            case "bool_key" | "int_key" | "uint_key" as kind:
                text += f"[{getattr(element, kind)}]"
            case _:
                pass
    return text
