"""Verifies an export of the audit with no server: reads its records, and feeds them to the verifier of the service."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from google.protobuf.json_format import Parse, ParseError
from google.protobuf.timestamp_pb2 import Timestamp

from sandboxd.model.audit import AuditEntry, AuditKind, AuditText, ExportSeal, SignedHead, read_head_line
from sandboxd.model.audit_chain import ChainVerifier, Finding, FindingKind, SignatureCheck
from sandboxd.model.ids import ClientId
from sandboxd.v1 import audit_pb2

MAX_LINE_CHARS = 1 << 20
"""A record is a few kilobytes; a longer line is none."""


class AuditFileError(Exception):
    """A file cannot be used at all; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileVerdict:
    """What was found in an export."""

    chain: str
    findings: Sequence[Finding]
    entries: int
    first: int
    last: int
    last_hash: bytes
    heads: int
    texts: int
    withheld: int


def verify_export(path: Path, *, keys: Mapping[str, Ed25519PublicKey], heads: Sequence[SignedHead] = ()) -> FileVerdict:
    """Check an export, and compare it with signed heads that were kept elsewhere.

    An export that was interrupted and resumed is several exports in one file: each begins where the one before ended.

    Raises:
        AuditFileError: The file cannot be read, or is no export.
    """
    begin = _first_begin(path)
    verifier = ChainVerifier(
        chain=chain_id(begin.chain),
        check=signature_check(keys),
        first=begin.first_sequence,
        prev_hash=begin.prev_hash,
    )
    # Heads first, wherever they stand: they are compared when their entries come by.
    for record in _records(path):
        if isinstance(record, audit_pb2.ExportAuditResponse) and record.HasField("head"):
            _expect(verifier, record.head)
    for head in heads:
        if head.chain == chain_id(begin.chain) and head.sequence >= begin.first_sequence:
            verifier.expect(head)
    part, held, sealed = begin, 0, False
    for record in _records(path):
        sealed = False
        if isinstance(record, _Unreadable):
            verifier.report(FindingKind.UNREADABLE, verifier.last + 1, f"line {record.line}: {record.why}")
            continue
        match record.WhichOneof("record"):
            case "begin":
                part, held = record.begin, 0
            case "head":
                held += 1
            case "entry":
                _feed(verifier, record.entry)
            case "seal":
                sealed = True
                _seal(verifier, record.seal, part=part, heads=held)
            case _:
                continue
    if not sealed:
        detail = "the export has no seal at its end: it was cut off, or interrupted (audit export --resume goes on)"
        verifier.report(FindingKind.CUT, verifier.last + 1, detail)
    return FileVerdict(
        chain=begin.chain,
        findings=tuple(verifier.finish()),
        entries=verifier.entries,
        first=begin.first_sequence,
        last=verifier.last,
        last_hash=verifier.last_hash,
        heads=verifier.heads,
        texts=verifier.texts,
        withheld=verifier.withheld,
    )


def resume_point(path: Path) -> int:
    """Cut a line that is not whole from the end of an interrupted export; return the entry to go on with.

    Raises:
        AuditFileError: The file cannot be read, or is no export.
    """
    _first_begin(path)
    last = whole = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            record = _parse(line.decode(errors="replace"))
            if record is not None and record.HasField("entry"):
                last = record.entry.sequence
            elif record is not None and record.HasField("begin"):
                last = record.begin.first_sequence - 1
    with path.open("rb+") as file:
        file.truncate(whole)
    return last + 1


def keys_in(path: Path) -> Mapping[str, Ed25519PublicKey]:
    """Return the keys that an export brings along. They prove nothing by themselves."""
    pems = [
        record.key.pem
        for record in _records(path)
        if isinstance(record, audit_pb2.ExportAuditResponse) and record.HasField("key")
    ]
    return dict(_key(pem.encode(), "the export") for pem in pems)


def read_keys(files: Sequence[Path]) -> Mapping[str, Ed25519PublicKey]:
    """Read public keys from PEM files, or from directories of them.

    Raises:
        AuditFileError: One cannot be read.
    """
    found: dict[str, Ed25519PublicKey] = {}
    for file in files:
        members = sorted(file.glob("[!.]*.pem")) if file.is_dir() else [file]
        for member in members:
            try:
                found |= [_key(member.read_bytes(), str(member))]
            except OSError as error:
                raise AuditFileError(f"The key {member} cannot be read: {error.strerror}.") from error
    if files and not found:
        raise AuditFileError("There is no public key in what --key names.")
    return found


def read_heads(paths: Sequence[Path]) -> Sequence[SignedHead]:
    """Read signed heads that were exported by the service, from files or directories of them.

    Raises:
        AuditFileError: One cannot be read.
    """
    heads = []
    for path in paths:
        for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
            try:
                heads += [read_head_line(line) for line in file.read_text().splitlines() if line.strip()]
            except (OSError, ValueError) as error:
                raise AuditFileError(f"{file} does not hold signed heads.") from error
    return heads


def signature_check(keys: Mapping[str, Ed25519PublicKey]) -> SignatureCheck:
    """Make the check of signatures by these keys."""

    def check(key_id: str, message: bytes, signature: bytes) -> bool | None:
        key = keys.get(key_id)
        if key is None:
            return None
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    return check


def chain_id(name: str) -> ClientId:
    """Return the id of a chain by its name."""
    return ClientId("" if name == "system" else name.removeprefix("clients/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unreadable:
    line: int
    why: str


def _first_begin(path: Path) -> audit_pb2.AuditExportBegin:
    first = next(_records(path), None)
    if not isinstance(first, audit_pb2.ExportAuditResponse) or not first.HasField("begin"):
        raise AuditFileError(f"{path} is no export of the audit: it does not begin like one.")
    return first.begin


def _records(path: Path) -> Iterator[audit_pb2.ExportAuditResponse | _Unreadable]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            number = 0
            while line := file.readline(MAX_LINE_CHARS):
                number += 1
                record = _parse(line)
                yield record if record is not None else _Unreadable(line=number, why="not a record of an export")
    except OSError as error:
        raise AuditFileError(f"{path} cannot be read: {error.strerror}.") from error


def _parse(line: str) -> audit_pb2.ExportAuditResponse | None:
    try:
        # Unknown fields are refused: what is not hashed must not be there.
        record = Parse(line, audit_pb2.ExportAuditResponse())
    except (ParseError, ValueError, RecursionError):
        return None
    return record if record.WhichOneof("record") else None


def _feed(verifier: ChainVerifier, entry: audit_pb2.AuditEntry) -> None:
    try:
        read = AuditEntry(
            chain=chain_id(entry.chain),
            sequence=entry.sequence,
            id=entry.id,
            time=_moment(entry.time),
            kind=AuditKind(audit_pb2.AuditKind.Name(entry.kind).removeprefix("AUDIT_KIND_")),
            action=entry.action,
            role=entry.role,
            target=entry.target,
            request_id=entry.request_id,
            intent=entry.intent,
            code=entry.code,
            reason=entry.reason,
            count=entry.count,
            since=_moment(entry.since) if entry.HasField("since") else None,
            digests=dict(entry.digests),
            prev_hash=entry.prev_hash,
            hash=entry.hash,
        )
    except ValueError as error:
        verifier.skip(FindingKind.UNREADABLE, f"the entry cannot be read: {error}")
        return
    verifier.feed(read, [AuditText(name=text.name, value=text.value, salt=text.salt) for text in entry.texts])


def _expect(verifier: ChainVerifier, head: audit_pb2.AuditHead) -> None:
    try:
        verifier.expect(
            SignedHead(
                chain=chain_id(head.chain),
                sequence=head.sequence,
                hash=head.hash,
                time=_moment(head.time),
                key_id=head.key_id,
                signature=head.signature,
            )
        )
    except ValueError as error:
        verifier.report(FindingKind.UNREADABLE, head.sequence, f"the signed head cannot be read: {error}")


def _seal(verifier: ChainVerifier, seal: audit_pb2.AuditSeal, *, part: audit_pb2.AuditExportBegin, heads: int) -> None:
    try:
        read = ExportSeal(
            chain=chain_id(seal.chain),
            first=seal.first_sequence,
            prev_hash=seal.prev_hash,
            last=seal.last_sequence,
            hash=seal.last_hash,
            heads=seal.heads,
            time=_moment(seal.time),
            key_id=seal.key_id,
            signature=seal.signature,
        )
    except ValueError as error:
        verifier.report(FindingKind.UNREADABLE, verifier.last, f"the seal cannot be read: {error}")
        return
    verifier.seal(read, first=part.first_sequence, prev_hash=part.prev_hash, heads=heads)


def _moment(stamp: Timestamp) -> datetime:
    if stamp.nanos % 1000:
        raise ValueError("a moment has six digits of a second")  # more of them would be no part of the hash
    return stamp.ToDatetime(tzinfo=UTC)


def _key(pem: bytes, where: str) -> tuple[str, Ed25519PublicKey]:
    try:
        key = load_pem_public_key(pem)
    except ValueError as error:
        raise AuditFileError(f"{where} does not hold a public key in PEM.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise AuditFileError(f"{where} holds a key that is not Ed25519.")
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16], key
