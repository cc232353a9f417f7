"""The ledger between the model and the contract."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from sandboxd.api.grpc.names import sandbox_id, sandbox_name, session_id, session_name, timestamp, turn_name
from sandboxd.model.caller import Caller
from sandboxd.model.ids import FreelancerId
from sandboxd.model.usage import TokenCounts, UsageEvent, UsageState
from sandboxd.monitor.ports import UsageDimension, UsageFilter, UsageSummaryRow
from sandboxd.v1 import usage_pb2 as pb

STATES: Final[Mapping[UsageState, pb.UsageState.ValueType]] = {
    UsageState.OPEN: pb.USAGE_STATE_OPEN,
    UsageState.SETTLED: pb.USAGE_STATE_SETTLED,
    UsageState.ESTIMATED: pb.USAGE_STATE_ESTIMATED,
}
DIMENSIONS: Final[Mapping[UsageDimension, pb.UsageDimension.ValueType]] = {
    UsageDimension.CLIENT: pb.USAGE_DIMENSION_CLIENT,
    UsageDimension.FREELANCER: pb.USAGE_DIMENSION_FREELANCER,
    UsageDimension.SANDBOX: pb.USAGE_DIMENSION_SANDBOX,
    UsageDimension.MODEL: pb.USAGE_DIMENSION_MODEL,
    UsageDimension.DAY: pb.USAGE_DIMENSION_DAY,
    UsageDimension.SESSION: pb.USAGE_DIMENSION_SESSION,
    UsageDimension.CLASS: pb.USAGE_DIMENSION_CLASS,
}
_DIMENSIONS_BACK: Final = {number: dimension for dimension, number in DIMENSIONS.items()}


def decode_filter(message: pb.UsageFilter, *, caller: Caller) -> UsageFilter:
    """Decode a filter; it never reaches beyond the caller's client, nor beyond a freelancer's own rows."""
    freelancer = FreelancerId(message.freelancer) if message.freelancer else None
    return UsageFilter(
        client=caller.client,
        freelancer=caller.freelancer or freelancer,
        sandbox=sandbox_id(message.sandbox or message.session) if message.sandbox or message.session else None,
        session=session_id(message.session) if message.session else None,
        model=message.model or None,
        start_from=_moment(message.start_time) if message.HasField("start_time") else None,
        start_before=_moment(message.end_time) if message.HasField("end_time") else None,
    )


def matches_nothing(message: pb.UsageFilter, *, caller: Caller) -> bool:
    """Tell whether a filter asks for what this caller cannot have: another freelancer's rows, or two sandboxes."""
    foreign = caller.freelancer is not None and message.freelancer not in {"", caller.freelancer}
    torn = bool(message.sandbox and message.session) and not message.session.startswith(f"{message.sandbox}/")
    return foreign or torn


def decode_dimensions(numbers: list[pb.UsageDimension.ValueType]) -> list[UsageDimension]:
    """Decode what rows are added up by."""
    return [_DIMENSIONS_BACK[number] for number in numbers]


def encode_usage_event(event: UsageEvent) -> pb.UsageEvent:
    """Encode one row of the ledger."""
    return pb.UsageEvent(
        id=event.id,
        client=event.client,
        freelancer=event.freelancer,
        sandbox=sandbox_name(event.sandbox),
        session=session_name(event.sandbox, event.session) if event.session else "",
        turn=turn_name(event.sandbox, event.session, event.turn) if event.session else "",
        method=event.method.value,
        model=event.model,
        model_version=event.model_version or "",
        state=STATES[event.state],
        http_status=event.http_status or 0,
        finish_reason=event.finish_reason or event.block_reason or "",
        tokens=encode_tokens(event.tokens),
        cost_micros=event.cost.micros if event.cost else None,
        currency=event.cost.currency if event.cost else "",
        start_time=timestamp(event.start_time),
        end_time=timestamp(event.end_time),
        error_reason=event.error_reason.value if event.error_reason else "",
    )


def encode_sum(row: UsageSummaryRow, *, by: list[UsageDimension]) -> pb.UsageSum:
    """Encode one sum; sandboxes are shown by their resource names."""
    keys = [
        sandbox_name(key) if dimension is UsageDimension.SANDBOX and key else key
        for dimension, key in zip(by, row.key, strict=True)
    ]
    return pb.UsageSum(
        keys=keys,
        calls=row.calls,
        failed_calls=row.failed_calls,
        open_calls=row.open_calls,
        estimated_calls=row.estimated_calls,
        tokens=encode_tokens(row.tokens),
        costs=[pb.Money(micros=cost.micros, currency=cost.currency) for cost in row.costs],
        unpriced_calls=row.unpriced_calls,
    )


def encode_tokens(tokens: TokenCounts) -> pb.TokenCounts:
    """Encode the classes of tokens."""
    return pb.TokenCounts(
        prompt=tokens.prompt,
        cached=tokens.cached,
        output=tokens.output,
        thoughts=tokens.thoughts,
        tool_use=tokens.tool_use,
        total=tokens.total,
    )


def _moment(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)
