"""Live usage, and what sandboxes held, between the model and the contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Final

from google.protobuf.duration_pb2 import Duration

from sandboxd.api.grpc.codec_usage import encode_sum, encode_usage_event
from sandboxd.api.grpc.names import sandbox_id, sandbox_name, timestamp
from sandboxd.manager.usage_watch import UsageNews
from sandboxd.model.caller import Caller
from sandboxd.model.errors import FieldViolation
from sandboxd.model.ids import FreelancerId
from sandboxd.model.metering import ResourceDimension, ResourceFilter, ResourceKind, ResourceSum
from sandboxd.model.usage import UsageEvent
from sandboxd.monitor.ports import SaidNotice, UsageCursor
from sandboxd.v1 import usage_pb2 as pb

KINDS: Final[Mapping[pb.ResourceKind.ValueType, ResourceKind]] = {
    pb.RESOURCE_KIND_RUNTIME: ResourceKind.RUNTIME,
    pb.RESOURCE_KIND_STORAGE: ResourceKind.STORAGE,
}
DIMENSIONS: Final[Mapping[pb.ResourceDimension.ValueType, ResourceDimension]] = {
    pb.RESOURCE_DIMENSION_CLIENT: ResourceDimension.CLIENT,
    pb.RESOURCE_DIMENSION_FREELANCER: ResourceDimension.FREELANCER,
    pb.RESOURCE_DIMENSION_SANDBOX: ResourceDimension.SANDBOX,
    pb.RESOURCE_DIMENSION_DAY: ResourceDimension.DAY,
    pb.RESOURCE_DIMENSION_TIER: ResourceDimension.TIER,
    pb.RESOURCE_DIMENSION_STATE: ResourceDimension.STATE,
    pb.RESOURCE_DIMENSION_VOLUME: ResourceDimension.VOLUME,
}


def encode_news(news: UsageNews) -> pb.WatchUsageResponse:
    """Encode one piece of news."""
    cursor = _write_cursor(news.cursor)
    match news.body:
        case UsageEvent():
            return pb.WatchUsageResponse(cursor=cursor, event=encode_usage_event(news.body))
        case SaidNotice() as said:
            return pb.WatchUsageResponse(cursor=cursor, notice=_encode_notice(said))
        case totals:
            return pb.WatchUsageResponse(cursor=cursor, totals=encode_sum(totals, by=[]))


def read_cursor(text: str) -> UsageCursor | None:
    """Read a cursor; the rules of the contract have checked its shape. None where there is none."""
    if not text:
        return None
    transaction, notices, event = text.split(".", 2)
    return UsageCursor(transaction=int(transaction), event=event, notices=int(notices))


def watch_rules(message: pb.WatchUsageRequest) -> Iterator[FieldViolation]:
    """Check what protovalidate's rules cannot say."""
    if message.filter.HasField("end_time"):
        yield FieldViolation(field="filter.end_time", description="must not be set: a watch has no end")


def resource_rules(message: pb.SummarizeResourcesRequest) -> Iterator[FieldViolation]:
    """Check what protovalidate for Python does not look at: `defined_only` of a list's items."""
    for index, dimension in enumerate(message.group_by):
        if dimension not in pb.ResourceDimension.values():
            yield FieldViolation(field=f"group_by[{index}]", description="must be a dimension of the contract")


def decode_resource_filter(message: pb.SummarizeResourcesRequest, *, caller: Caller) -> ResourceFilter | None:
    """Decode what is meant; None where it is another freelancer's than the caller may see."""
    if caller.freelancer is not None and message.freelancer not in {"", caller.freelancer}:
        return None
    freelancer = FreelancerId(message.freelancer) if message.freelancer else None
    return ResourceFilter(
        client=caller.client,
        freelancer=caller.freelancer or freelancer,
        sandbox=sandbox_id(message.sandbox) if message.sandbox else None,
        start_from=message.start_time.ToDatetime(tzinfo=UTC) if message.HasField("start_time") else None,
        start_before=message.end_time.ToDatetime(tzinfo=UTC) if message.HasField("end_time") else None,
    )


def encode_resource_sum(row: ResourceSum, *, by: list[ResourceDimension]) -> pb.ResourceSum:
    """Encode one sum; sandboxes are shown by their resource names."""
    duration = Duration()
    duration.FromTimedelta(row.span)
    return pb.ResourceSum(
        keys=[
            sandbox_name(key) if dimension is ResourceDimension.SANDBOX else key
            for dimension, key in zip(by, row.key, strict=True)
        ],
        duration=duration,
        megabyte_seconds=row.megabyte_seconds,
        sandboxes=row.sandboxes,
    )


def _encode_notice(said: SaidNotice) -> pb.BudgetNotice:
    return pb.BudgetNotice(
        budget=f"budgets/{said.budget}",
        code=said.notice.code.value,
        message=said.notice.message,
        percent=said.notice.threshold,
        freelancer=said.freelancer,
        sandbox=sandbox_name(said.sandbox),
        notice_time=timestamp(said.notice_time),
    )


def _write_cursor(cursor: UsageCursor) -> str:
    return f"{cursor.transaction}.{cursor.notices}.{cursor.event}"
