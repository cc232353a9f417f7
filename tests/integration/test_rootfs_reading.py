"""Files that others write to while they are captured: each ends in a known way."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from sandboxd.agent.rootfs_reading import HELD_BYTES, ChangedKindError, Frame, read_file
from sandboxd.agent.user import User
from sandboxd.model.rootfs import ChangedEntry, FileData, FileEnd, SkippedPath

LARGE = HELD_BYTES + 1000
REWRITER = """
import os, sys
file = os.open(sys.argv[1], os.O_RDWR)
print(flush=True)
while True:
    for letter in b"ab":
        os.pwrite(file, bytes([letter]) * (1 << 20), 0)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def _end(frames: list[Frame]) -> FileEnd:
    ends = [frame for frame in frames if isinstance(frame, FileEnd)]
    assert len(ends) == 1
    assert ends[0].size == sum(len(frame.data) for frame in frames if isinstance(frame, FileData))
    return ends[0]


def _begun(directory: int) -> tuple[ChangedEntry, Iterator[Frame]]:
    frames = read_file(directory, b"file", b"opt/file")
    entry = next(frames)
    assert isinstance(entry, ChangedEntry)
    return entry, frames


@pytest.mark.parametrize("size", [0, 1, HELD_BYTES, LARGE])
def test_a_file_that_holds_still_is_whole(tmp_path: Path, directory: int, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)

    entry, frames = _begun(directory)

    assert (entry.path, entry.size) == (b"opt/file", size)
    assert _end(list(frames)) == FileEnd(size=size, sha256=hashlib.sha256(content).digest(), torn=False)


def test_of_a_file_that_grows_what_it_had_is_sent(tmp_path: Path, directory: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a" * LARGE)
    entry, frames = _begun(directory)

    with file.open("ab") as more:
        more.write(b"b" * LARGE)
    end = _end(list(frames))

    assert (entry.size, end.size, end.torn) == (LARGE, LARGE, True)
    assert end.sha256 == hashlib.sha256(b"a" * LARGE).digest()


def test_of_a_file_that_shrinks_what_is_left_is_sent(tmp_path: Path, directory: int) -> None:
    (tmp_path / "file").write_bytes(b"a" * LARGE)
    _, frames = _begun(directory)

    os.truncate(tmp_path / "file", 10)
    end = _end(list(frames))

    assert (end.size, end.torn) == (10, True)


def test_a_file_that_vanishes_while_it_is_read_is_sent_to_its_end(tmp_path: Path, directory: int) -> None:
    (tmp_path / "file").write_bytes(b"a" * LARGE)
    _, frames = _begun(directory)

    (tmp_path / "file").unlink()
    end = _end(list(frames))

    assert end.sha256 == hashlib.sha256(b"a" * LARGE).digest()


def test_a_rewrite_that_puts_the_time_back_is_seen(tmp_path: Path, directory: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a" * LARGE)
    before = file.stat()
    _, frames = _begun(directory)
    time.sleep(0.02)  # kernels before 6.13 stamp by ticks

    with file.open("r+b") as same:
        same.write(b"b")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert _end(list(frames)).torn


def test_a_file_that_somebody_else_rewrites_is_of_one_moment_or_said_to_be_torn(tmp_path: Path, directory: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a" * (1 << 20))
    with subprocess.Popen([sys.executable, "-c", REWRITER, str(file)], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            for _ in range(10):
                frames = list(read_file(directory, b"file", b"file"))
                content = b"".join(frame.data for frame in frames if isinstance(frame, FileData))
                assert _end(frames).torn or len(set(content)) == 1
        finally:
            writer.kill()


def test_what_may_not_be_read_is_told(tmp_path: Path, directory: int) -> None:
    (tmp_path / "file").write_bytes(b"a")
    (tmp_path / "file").chmod(0)
    tmp_path.chmod(0o755)

    with User(user_id=65534, group_id=65534).rights() if os.geteuid() == 0 else nullcontext():
        frames = list(read_file(directory, b"file", b"file"))

    assert frames == [SkippedPath(path=b"file", reason="unreadable")]


@pytest.mark.parametrize("kind", ["absent", "link", "directory", "pipe"])
def test_what_became_something_else_is_not_read_and_nobody_waits_for_it(
    tmp_path: Path, directory: int, kind: str
) -> None:
    match kind:
        case "link":
            (tmp_path / "file").symlink_to("/etc/passwd")
        case "directory":
            (tmp_path / "file").mkdir()
        case "pipe":
            os.mkfifo(tmp_path / "file")
        case _:
            pass

    with pytest.raises(ChangedKindError):
        list(read_file(directory, b"file", b"file"))
