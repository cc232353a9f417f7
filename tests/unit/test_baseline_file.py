"""The file of a base's entries gives back what was written, whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.images import baseline_file
from sandboxd.images.baseline_file import RECORD_BYTES, check_file, read_records, write_records
from sandboxd.model.errors import InternalError
from sandboxd.model.image_errors import BaselineDamagedError
from sandboxd.model.rootfs import BaselineEntry, BaselineRecord, EntryKind, walk_key

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: not {0, 47} & set(name))
PATHS = st.lists(NAMES, max_size=4).map(b"/".join)
ATTRIBUTES = st.dictionaries(st.binary(min_size=1, max_size=30), st.binary(max_size=300), max_size=3)
KINDS = st.sampled_from([kind for kind in EntryKind if kind is not EntryKind.HARDLINK])


@st.composite
def a_record(draw: st.DrawFn) -> BaselineRecord:
    kind = draw(KINDS)
    entry = BaselineEntry(
        path=draw(PATHS),
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**32 - 1)),
        gid=draw(st.integers(0, 2**32 - 1)),
        size=draw(st.integers(0, 2**63)) if kind is EntryKind.FILE else 0,
        mtime=draw(st.integers(-(2**62), 2**62)),
        link=draw(st.binary(min_size=1, max_size=60)) if kind is EntryKind.SYMLINK else b"",
    )
    sha256 = draw(st.binary(min_size=32, max_size=32)) if kind is EntryKind.FILE else b""
    return BaselineRecord(entry=entry, sha256=sha256, xattrs=draw(ATTRIBUTES))


RECORDS = st.lists(a_record(), max_size=30, unique_by=lambda record: record.entry.path).map(
    lambda records: sorted(records, key=lambda record: walk_key(record.entry.path))
)


def files(count: int, *, attributes: int = 0) -> Iterator[BaselineRecord]:
    for number in range(count):
        entry = BaselineEntry(path=b"%08d" % number, kind=EntryKind.FILE, mode=0o644, uid=0, gid=0, size=number)
        yield BaselineRecord(entry=entry, sha256=os.urandom(32), xattrs={b"user.x": os.urandom(attributes)})


@settings(deadline=None)
@given(records=RECORDS)
def test_what_is_written_is_read(records: list[BaselineRecord]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "base"

        assert write_records(path, records) == len(records)

        assert list(read_records(path)) == records
        assert check_file(path) == len(records)


def test_records_longer_than_what_is_read_at_a_time_are_read_whole(tmp_path: Path) -> None:
    records = list(files(40, attributes=150_000))

    write_records(tmp_path / "base", records)

    assert list(read_records(tmp_path / "base")) == records


@pytest.mark.parametrize("reader", [lambda path: list(read_records(path)), check_file])
def test_a_cut_file_is_an_error_wherever_it_is_cut(tmp_path: Path, reader: object) -> None:
    assert callable(reader)
    write_records(tmp_path / "base", files(8))
    whole = (tmp_path / "base").read_bytes()

    for length in range(len(whole)):
        (tmp_path / "base").write_bytes(whole[:length])
        with pytest.raises(BaselineDamagedError):
            reader(tmp_path / "base")


@pytest.mark.parametrize("reader", [lambda path: list(read_records(path)), check_file])
def test_a_file_with_another_byte_or_more_bytes_is_an_error(tmp_path: Path, reader: object) -> None:
    assert callable(reader)
    write_records(tmp_path / "base", files(8))
    whole = (tmp_path / "base").read_bytes()

    for offset in range(len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x41
        (tmp_path / "base").write_bytes(damaged)
        with pytest.raises(BaselineDamagedError):
            reader(tmp_path / "base")
    (tmp_path / "base").write_bytes(whole + b"\0")
    with pytest.raises(BaselineDamagedError):
        reader(tmp_path / "base")


def test_an_absent_file_and_one_of_another_version_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path / "base", files(3))
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(BaselineDamagedError):
            list(read_records(path))

    monkeypatch.setattr(baseline_file, "VERSION", baseline_file.VERSION + 1)

    with pytest.raises(BaselineDamagedError):
        check_file(tmp_path / "base")


def test_what_is_out_of_order_or_too_long_is_not_written(tmp_path: Path) -> None:
    one, two = files(2)
    for records in ([two, one], [one, one]):
        with pytest.raises(InternalError, match="not in order"):
            write_records(tmp_path / "base", records)
    with pytest.raises(InternalError, match="longer than"):
        write_records(tmp_path / "base", files(1, attributes=RECORD_BYTES))

    assert list(tmp_path.iterdir()) == []
