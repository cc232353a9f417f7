"""Chains and exports of them: whatever single thing is changed, cut, moved or taken away is found and named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.json_format import Parse, ParseError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandboxd.api.grpc.codec_audit import encode_item
from sandboxd.ctl.audit_file import AuditFileError, FileVerdict, read_keys, resume_point, verify_export
from sandboxd.ctl.jsonlines import to_line
from sandboxd.model.audit import (
    FIRST_HASH,
    AuditEntry,
    AuditKind,
    AuditText,
    ExportSeal,
    SignedHead,
    canonical,
    entry_hash,
    head_line,
    read_head_line,
    text_digest,
)
from sandboxd.model.audit_chain import ChainVerifier, Finding, FindingKind
from sandboxd.model.ids import ClientId
from sandboxd.monitor.audit_desk import ExportBegin, ExportItem, PublicKey
from sandboxd.monitor.audit_ports import AuditRecord
from sandboxd.v1 import audit_pb2

NOON = datetime(2026, 11, 28, 12, 0, 0, 123456, tzinfo=UTC)
ACME = ClientId("acme")
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key()
KEY_ID = hashlib.sha256(PUBLIC.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]
KEYS = {KEY_ID: PUBLIC}
SIZE = 9
HEADS = (3, 6, 9)


def a_text(name: str, value: str) -> AuditText:
    return AuditText(name=name, value=value, salt=hashlib.sha256(name.encode() + value.encode()).digest()[:16])


def a_record(sequence: int, before: bytes, *, chain: str = "acme") -> AuditRecord:
    texts = (a_text("actor", f"person-{sequence % 3}"), a_text("peer", "10.1.2.3"))
    outcome = sequence % 3 == 2
    denied = sequence % 3 == 0
    entry = AuditEntry(
        chain=ClientId(chain),
        sequence=sequence,
        id=f"aud-{sequence:026d}",
        time=NOON + timedelta(seconds=sequence),
        kind=AuditKind.OUTCOME if outcome else AuditKind.DENIED if denied else AuditKind.INTENT,
        action="SandboxService/Pause",
        role="client_admin",
        target=f"sandboxes/sbx-{sequence}",
        request_id=f"request-{sequence}",
        intent=sequence - 1 if outcome else 0,
        code="OK" if outcome else "PERMISSION_DENIED" if denied else "",
        reason="ROLE_FORBIDDEN" if denied else "",
        count=7 if denied else 1,
        since=NOON if denied else None,
        digests={} if outcome else {text.name: text_digest(text.value, salt=text.salt) for text in texts},
        prev_hash=before,
        hash=b"",
    )
    return AuditRecord(entry=replace(entry, hash=entry_hash(entry)), texts=() if outcome else texts)


def a_chain(size: int = SIZE, *, chain: str = "acme") -> list[AuditRecord]:
    records: list[AuditRecord] = []
    for sequence in range(1, size + 1):
        records.append(a_record(sequence, records[-1].entry.hash if records else FIRST_HASH, chain=chain))
    return records


def a_head(record: AuditRecord) -> SignedHead:
    entry = record.entry
    head = SignedHead(
        chain=entry.chain, sequence=entry.sequence, hash=entry.hash, time=NOON, key_id=KEY_ID, signature=b""
    )
    return replace(head, signature=KEY.sign(head.message()))


def a_seal(records: list[AuditRecord], *, heads: int, first: int = 1, before: bytes = FIRST_HASH) -> ExportSeal:
    last = records[-1].entry
    seal = ExportSeal(
        chain=ACME,
        first=first,
        prev_hash=before,
        last=last.sequence,
        hash=last.hash,
        heads=heads,
        time=NOON,
        key_id=KEY_ID,
        signature=b"",
    )
    return replace(seal, signature=KEY.sign(seal.message()))


def an_export(records: list[AuditRecord], *, first: int = 1, before: bytes = FIRST_HASH) -> list[str]:
    """The lines of an export, as the service writes them."""
    pem = PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    items: list[ExportItem] = [
        ExportBegin(chain=ACME, first=first, prev_hash=before),
        PublicKey(key_id=KEY_ID, pem=pem),
    ]
    heads = 0
    for record in records:
        if record.entry.sequence in HEADS:
            items.append(a_head(record))
            heads += 1
        items.append(record)
    items.append(a_seal(records, heads=heads, first=first, before=before))
    return [to_line(encode_item(item, with_texts=True)) for item in items]


LINES = an_export(a_chain())
ENTRY_LINES = [number for number, line in enumerate(LINES) if '"entry":' in line]
SIGNED_LINES = [number for number, line in enumerate(LINES) if '"head":' in line or '"seal":' in line]


def verified(path: Path, lines: list[str], *, heads: list[SignedHead] | None = None) -> FileVerdict:
    path.write_text("".join(f"{line}\n" for line in lines))
    return verify_export(path, keys=KEYS, heads=heads or [])


def sequence_at(number: int) -> int:
    found: int = json.loads(LINES[number])["entry"]["sequence"]
    return found


def first_of(verdict: FileVerdict) -> Finding:
    assert verdict.findings, "nothing was found"
    return verdict.findings[0]


def test_an_untouched_export_is_valid(tmp_path: Path) -> None:
    found = verified(tmp_path / "x", LINES)

    assert (found.findings, found.entries, found.last, found.heads, found.texts) == ((), SIZE, SIZE, 3, 12)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Every scalar in a JSON value, with where it is."""
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in leaves(item, (*path, index))]
    return [(path, value)]


def other(value: Any, draw: Callable[[Any], Any]) -> Any:
    """Another value of the same kind, as somebody might put it there."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw(st.integers(0, 1 << 40).filter(lambda number: number != value))
    if not isinstance(value, str):
        return value
    if value.endswith("Z") and value[:2] == "20":
        return draw(st.sampled_from(["2026-11-28T12:00:00.123457Z", "2027-01-01T00:00:00Z", value[:-1] + "001Z"]))
    choices = [st.just(""), st.text("abcABC/-.=é\x00", min_size=1, max_size=12), st.just(f"{value}A"), st.just("AAAA")]
    return draw(st.one_of(choices).filter(lambda text: text != value))


@st.composite
def mutations(draw: Any) -> tuple[int, list[str]]:
    """An export in which one value of one record is another one."""
    number = draw(st.sampled_from(ENTRY_LINES + SIGNED_LINES))
    record = json.loads(LINES[number])
    path, value = draw(st.sampled_from(leaves(record)))
    changed = other(value, draw)
    inside = record
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = changed
    lines = list(LINES)
    lines[number] = json.dumps(record)
    return number, lines


def means_the_same(one: str, another: str) -> bool:
    try:
        return bool(Parse(one, audit_pb2.ExportAuditResponse()) == Parse(another, audit_pb2.ExportAuditResponse()))
    except ParseError:
        return False


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutation=mutations())
def test_any_changed_value_is_found_and_its_entry_named(tmp_path: Path, mutation: tuple[int, list[str]]) -> None:
    number, lines = mutation

    found = verified(tmp_path / "x", lines)

    if means_the_same(lines[number], LINES[number]):  # `AA==` and `AA` are the same bytes
        assert found.findings == ()
    elif number in ENTRY_LINES:
        place = sequence_at(number)
        assert first_of(found).sequence <= place <= max(one.until for one in found.findings)
        assert any(one.sequence == place for one in found.findings)
    else:
        assert found.findings


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.sampled_from(ENTRY_LINES + SIGNED_LINES))
def test_a_record_that_is_gone_is_found_and_named(tmp_path: Path, number: int) -> None:
    found = verified(tmp_path / "x", LINES[:number] + LINES[number + 1 :])

    if number in ENTRY_LINES:
        place = sequence_at(number)
        kind = FindingKind.CUT if place == SIZE else FindingKind.MISSING
        assert (first_of(found).kind, first_of(found).sequence, first_of(found).until) == (kind, place, place)
    else:
        assert first_of(found).kind in {FindingKind.HEAD_MISSING, FindingKind.CUT}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, len(LINES) - 1))
def test_an_export_that_is_cut_anywhere_is_found_with_the_first_entry_that_is_not_there(
    tmp_path: Path, cut: int
) -> None:
    found = verified(tmp_path / "x", LINES[:cut])

    last = max((sequence_at(number) for number in ENTRY_LINES if number < cut), default=0)
    cuts = [one for one in found.findings if one.kind is FindingKind.CUT]
    assert cuts
    assert cuts[0].sequence == last + 1


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pair=st.lists(st.sampled_from(ENTRY_LINES), min_size=2, max_size=2, unique=True))
@example(pair=[ENTRY_LINES[0], ENTRY_LINES[1]])
def test_entries_that_changed_places_are_found_and_named(tmp_path: Path, pair: list[int]) -> None:
    one, another = sorted(pair)
    lines = list(LINES)
    lines[one], lines[another] = lines[another], lines[one]

    found = verified(tmp_path / "x", lines)

    assert first_of(found).kind is FindingKind.REORDERED
    assert first_of(found).sequence == sequence_at(one)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pair=st.lists(st.integers(1, SIZE), min_size=2, max_size=2, unique=True))
def test_entries_that_changed_places_and_numbers_are_found_and_named(tmp_path: Path, pair: list[int]) -> None:
    one, another = sorted(pair)
    records = a_chain()
    first, second = records[one - 1].entry, records[another - 1].entry
    records[one - 1] = replace(records[one - 1], entry=replace(second, sequence=one))
    records[another - 1] = replace(records[another - 1], entry=replace(first, sequence=another))

    found = verified(tmp_path / "x", an_export(records))

    assert first_of(found).sequence == one


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.sampled_from(ENTRY_LINES + SIGNED_LINES[:-1]), at=st.integers(1, len(LINES) - 1))
def test_a_record_that_is_there_twice_is_found(tmp_path: Path, number: int, at: int) -> None:
    found = verified(tmp_path / "x", [*LINES[:at], LINES[number], *LINES[at:]])

    assert {one.kind for one in found.findings} & {
        FindingKind.ADDED,
        FindingKind.REORDERED,
        FindingKind.HEAD_MISSING,
        FindingKind.CUT,
    }


@pytest.mark.parametrize("place", range(1, SIZE + 1))
def test_an_entry_that_was_rehashed_is_named_by_the_next_one_or_by_a_signed_head(tmp_path: Path, place: int) -> None:
    records = a_chain()
    forged = replace(records[place - 1].entry, role="auditor")
    records[place - 1] = replace(records[place - 1], entry=replace(forged, hash=entry_hash(forged)))
    lines = list(LINES)
    lines[ENTRY_LINES[place - 1]] = to_line(encode_item(records[place - 1], with_texts=True))

    found = verified(tmp_path / "x", lines)

    kinds = {one.kind for one in found.findings if one.sequence <= place <= one.until}
    assert kinds & {FindingKind.CHANGED, FindingKind.REWRITTEN}


@pytest.mark.parametrize("place", range(1, SIZE + 1))
def test_a_chain_that_was_rewritten_from_somewhere_on_does_not_fit_what_was_signed(tmp_path: Path, place: int) -> None:
    records = a_chain()
    for index in range(place - 1, SIZE):
        before = records[index - 1].entry.hash if index else FIRST_HASH
        entry = replace(records[index].entry, prev_hash=before, request_id="forged")
        records[index] = replace(records[index], entry=replace(entry, hash=entry_hash(entry)))
    lines = list(LINES)
    for number, record in zip(ENTRY_LINES, records, strict=True):
        lines[number] = to_line(encode_item(record, with_texts=True))

    found = first_of(verified(tmp_path / "x", lines))

    assert found.kind is FindingKind.REWRITTEN
    assert found.sequence <= place <= found.until


def test_a_whole_export_of_a_shorter_chain_is_found_by_a_head_that_was_kept_elsewhere(tmp_path: Path) -> None:
    shorter = an_export(a_chain()[:5])

    alone = verified(tmp_path / "x", shorter)
    compared = verified(tmp_path / "x", shorter, heads=[a_head(a_chain()[8])])

    assert alone.findings == ()
    assert [(one.kind, one.sequence, one.until) for one in compared.findings] == [(FindingKind.CUT, 6, 9)]


def test_a_key_that_is_not_trusted_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("".join(f"{line}\n" for line in LINES))

    found = verify_export(tmp_path / "x", keys={})

    assert {one.kind for one in found.findings} == {FindingKind.UNKNOWN_KEY}


def test_erased_texts_leave_the_chain_valid_and_changed_ones_do_not(tmp_path: Path) -> None:
    erased = [replace(record, texts=()) for record in a_chain()]
    changed = a_chain()
    changed[3] = replace(changed[3], texts=(replace(changed[3].texts[0], value="somebody else"),))

    without = verified(tmp_path / "x", an_export(erased))
    false = verified(tmp_path / "x", an_export(changed))

    assert (without.findings, without.withheld) == ((), 12)
    assert [(one.kind, one.sequence) for one in false.findings] == [(FindingKind.TEXT_CHANGED, 4)]


@pytest.mark.parametrize("cut", range(1, len(LINES)))
def test_an_export_that_was_interrupted_anywhere_is_resumed(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x"
    half = LINES[cut][: len(LINES[cut]) // 2]
    path.write_text("".join(f"{line}\n" for line in LINES[:cut]) + half)

    first = resume_point(path)
    before = a_chain()[first - 2].entry.hash if first > 1 else FIRST_HASH
    rest = a_chain()[first - 1 :]
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in (an_export(rest, first=first, before=before) if rest else LINES[-1:]))

    found = verify_export(path, keys=KEYS)
    heads_of_a_part = {FindingKind.HEAD_MISSING}
    assert {one.kind for one in found.findings} - (heads_of_a_part if not rest else set()) == set()
    assert found.last == SIZE


def test_what_is_no_export_is_said_so(tmp_path: Path) -> None:
    for content in ("", "hello\n", '{"entry": {}}\n', "\x00\xff\n", "[" * 100_000):
        (tmp_path / "x").write_text(content)
        with pytest.raises(AuditFileError):
            verify_export(tmp_path / "x", keys=KEYS)
    with pytest.raises(AuditFileError):
        verify_export(tmp_path / "nothing", keys=KEYS)


def test_keys_are_read_from_files_and_directories(tmp_path: Path) -> None:
    pem = PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "one.pem").write_bytes(pem)
    (tmp_path / "bad.key").write_text("no key")

    assert [*read_keys([tmp_path])] == [*read_keys([tmp_path / "one.pem"])] == [KEY_ID]
    with pytest.raises(AuditFileError):
        read_keys([tmp_path / "bad.key"])


def test_heads_come_back_from_their_lines() -> None:
    head = a_head(a_chain()[2])

    assert read_head_line(head_line(head)) == head
    for bad in ("", "{}", "[]", '{"chain": 1}', head_line(head)[:-9]):
        with pytest.raises(ValueError, match=r".*"):
            read_head_line(bad)


def test_the_canonical_bytes_are_those_of_the_documentation() -> None:
    # If this fails, every chain that was ever written fails: make a new format instead.
    entry = a_record(3, FIRST_HASH).entry

    assert canonical(entry).startswith(
        b"23:sandboxd.audit.entry.v1,4:acme,1:3,30:aud-00000000000000000000000003,27:2026-11-28T12:00:03.123456Z,"
        b"6:DENIED,20:SandboxService/Pause,12:client_admin,15:sandboxes/sbx-3,9:request-3,1:0,17:PERMISSION_DENIED,"
        b"14:ROLE_FORBIDDEN,1:7,27:2026-11-28T12:00:00.123456Z,1:2,5:actor,64:"
    )
    assert hashlib.sha256(bytes(32) + canonical(entry)).digest() == entry.hash


def test_fields_cannot_be_moved_into_one_another() -> None:
    entry = a_record(1, FIRST_HASH).entry
    texts: Mapping[str, bytes] = {"a": b"\x01", "b": b"\x02"}

    variants = [
        replace(entry, action="a", role="bc", digests=texts),
        replace(entry, action="ab", role="c", digests=texts),
        replace(entry, action="a", role="bc", digests={"a": b"\x01\x02"}),
        replace(entry, action="a", role="bc", digests={"ab": b"\x02"}),
    ]

    assert len({canonical(one) for one in variants}) == len(variants)


def test_findings_are_bounded() -> None:
    verifier = ChainVerifier(chain=ACME, check=lambda *_: None)
    bad = replace(a_record(1, FIRST_HASH).entry, role="auditor")

    for sequence in range(1, 5001):
        verifier.feed(replace(bad, sequence=sequence))

    assert len(verifier.finish()) == 1000
