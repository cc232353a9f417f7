"""The audit's messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import assert_never

from google.protobuf.timestamp_pb2 import Timestamp

from sandboxd.api.grpc.names import timestamp
from sandboxd.model.audit import SYSTEM_CHAIN, AuditKind, ExportSeal, SignedHead
from sandboxd.model.audit_chain import Finding
from sandboxd.model.ids import ClientId
from sandboxd.monitor.audit_desk import ExportBegin, ExportItem, Progress, PublicKey, Verdict, chain_name
from sandboxd.monitor.audit_ports import AuditFilter, AuditRecord
from sandboxd.v1 import audit_pb2 as pb

SYSTEM = "system"


def decode_chain(name: str) -> ClientId | None:
    """Return the chain that a name stands for; None for the caller's own."""
    if not name:
        return None
    return SYSTEM_CHAIN if name == SYSTEM else ClientId(name.removeprefix("clients/"))


def decode_filter(where: pb.AuditFilter) -> AuditFilter:
    """Read a filter."""
    return AuditFilter(
        start_time=_moment(where.start_time) if where.HasField("start_time") else None,
        end_time=_moment(where.end_time) if where.HasField("end_time") else None,
        actor=where.actor,
        action=where.action,
        target=where.target,
        request_id=where.request_id,
        kinds=frozenset(AuditKind(pb.AuditKind.Name(kind).removeprefix("AUDIT_KIND_")) for kind in where.kinds),
        codes=frozenset(where.codes),
    )


def encode_entry(record: AuditRecord, *, with_texts: bool = True) -> pb.AuditEntry:
    """Write an entry with what is left of its texts."""
    entry = record.entry
    return pb.AuditEntry(
        chain=chain_name(entry.chain),
        sequence=entry.sequence,
        id=entry.id,
        time=timestamp(entry.time),
        kind=pb.AuditKind.Value(f"AUDIT_KIND_{entry.kind.value}"),
        action=entry.action,
        role=entry.role,
        target=entry.target,
        request_id=entry.request_id,
        intent=entry.intent,
        code=entry.code,
        reason=entry.reason,
        count=entry.count,
        since=timestamp(entry.since),
        digests=dict(entry.digests),
        prev_hash=entry.prev_hash,
        hash=entry.hash,
        texts=[
            pb.AuditText(name=text.name, value=text.value, salt=text.salt)
            for text in (record.texts if with_texts else ())
        ],
    )


def encode_step(step: Progress | Finding | Verdict) -> pb.VerifyAuditResponse:
    """Write one message of a check."""
    match step:
        case Progress():
            return pb.VerifyAuditResponse(progress=pb.AuditProgress(sequence=step.sequence, last_sequence=step.last))
        case Finding():
            kind = pb.AuditFindingKind.Value(f"AUDIT_FINDING_KIND_{step.kind.value}")
            return pb.VerifyAuditResponse(
                finding=pb.AuditFinding(kind=kind, sequence=step.sequence, until=step.until, detail=step.detail)
            )
        case Verdict():
            return pb.VerifyAuditResponse(
                verdict=pb.AuditVerdict(
                    chain=chain_name(step.chain),
                    valid=step.valid,
                    entries=step.entries,
                    heads=step.heads,
                    texts=step.texts,
                    withheld_texts=step.withheld,
                    last_sequence=step.last,
                    last_hash=step.last_hash,
                )
            )
        case _:
            assert_never(step)


def encode_item(item: ExportItem, *, with_texts: bool) -> pb.ExportAuditResponse:
    """Write one record of an export."""
    match item:
        case ExportBegin():
            begin = pb.AuditExportBegin(
                chain=chain_name(item.chain), first_sequence=item.first, prev_hash=item.prev_hash
            )
            return pb.ExportAuditResponse(begin=begin)
        case PublicKey():
            return pb.ExportAuditResponse(key=pb.AuditPublicKey(key_id=item.key_id, pem=item.pem.decode()))
        case SignedHead():
            return pb.ExportAuditResponse(
                head=pb.AuditHead(
                    chain=chain_name(item.chain),
                    sequence=item.sequence,
                    hash=item.hash,
                    time=timestamp(item.time),
                    key_id=item.key_id,
                    signature=item.signature,
                )
            )
        case AuditRecord():
            return pb.ExportAuditResponse(entry=encode_entry(item, with_texts=with_texts))
        case ExportSeal():
            return pb.ExportAuditResponse(
                seal=pb.AuditSeal(
                    chain=chain_name(item.chain),
                    first_sequence=item.first,
                    prev_hash=item.prev_hash,
                    last_sequence=item.last,
                    last_hash=item.hash,
                    heads=item.heads,
                    time=timestamp(item.time),
                    key_id=item.key_id,
                    signature=item.signature,
                )
            )
        case _:
            assert_never(item)


def _moment(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)
