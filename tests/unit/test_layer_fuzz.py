"""Garbage in frames of the right form: what a replaced agent may send is a layer or a clear refusal, never a crash."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.images.ports import ImageLimits, SecretPolicy
from sandboxd.images.tar_entries import WHITEOUT
from sandboxd.model.image_errors import CaptureInvalidError, FileTornError, ImageTooLargeError
from sandboxd.model.rootfs import (
    CaptureEnd,
    CaptureFrame,
    CaptureProgress,
    ChangedEntry,
    DeletedPath,
    EntryKind,
    FileData,
    FileEnd,
    SkippedPath,
)
from tests.layers import Base, a_file, a_link, an_entry, base, ended, make, members

TREE = base(
    Base(path=b"a/b", content=b"ab"),
    Base(path=b"a/link", link=b"/"),
    Base(path=b"b", content=b"b"),
    Base(path=b"proc"),
)
LIMITS = ImageLimits(raw_bytes=1 << 14, compressed_bytes=1 << 14, entries=20, file_bytes=1 << 12)
NUMBERS = st.one_of(st.integers(-2, 3), st.sampled_from([0o7777, 0o10000, 1 << 31, 1 << 32, 1 << 63, -(1 << 62)]))
PATHS = st.one_of(
    st.lists(st.sampled_from([b"a", b"b", b"link", b"", b".", b"..", b".wh.b", b"\0", b"x" * 256]), max_size=4).map(
        b"/".join
    ),
    st.binary(max_size=12),
)
CONTENTS = st.sampled_from([b"", b"b", b"ab", bytes(5000)])
ENTRIES = st.builds(
    ChangedEntry,
    path=PATHS,
    kind=st.sampled_from(EntryKind),
    mode=NUMBERS,
    uid=NUMBERS,
    gid=NUMBERS,
    size=NUMBERS,
    mtime=NUMBERS,
    link=PATHS,
    xattrs=st.dictionaries(st.sampled_from([b"", b"user.", b"user.=", b"user.x", b"trusted.x"]), CONTENTS, max_size=2),
    names=NUMBERS,
)
FRAMES = st.one_of(
    ENTRIES,
    CONTENTS.map(FileData),
    st.builds(FileEnd, size=NUMBERS, sha256=st.binary(max_size=33), torn=st.booleans()),
    PATHS.map(DeletedPath),
    st.builds(SkippedPath, path=PATHS, reason=st.text(max_size=8)),
    st.builds(CaptureProgress, entries=NUMBERS, bytes=NUMBERS),
    st.builds(CaptureEnd, entries=NUMBERS, changed=NUMBERS, deleted=NUMBERS, bytes=NUMBERS),
)
GOOD = st.one_of(
    st.builds(a_file, PATHS, CONTENTS, names=st.sampled_from([0, 1, 2]), torn=st.booleans()),
    st.builds(an_entry, PATHS),
    st.builds(a_link, PATHS, PATHS),
    PATHS.map(lambda path: [DeletedPath(path)]),
)


def _feed(frames: list[CaptureFrame], secrets: SecretPolicy) -> None:
    try:
        made = make(TREE, frames, limits=LIMITS, secrets=secrets)
    except (CaptureInvalidError, ImageTooLargeError, FileTornError):
        return
    _check(made.tar)


def _check(tar: bytes) -> None:
    """Hold a layer to what nothing in it may do, however it came about."""
    seen: dict[str, bool] = {}
    known = {record.entry.path.decode() for record in TREE}
    everything = members(tar)
    directories = {member.name for member in everything if member.isdir()}
    for member in everything:
        parts = member.name.split("/")
        assert member.name not in seen
        assert not member.name.startswith("/")
        assert not {"", ".", ".."} & set(parts)
        assert not any(part.startswith(WHITEOUT.decode()) for part in parts[:-1])
        if parts[-1].startswith(WHITEOUT.decode()):
            hidden = "/".join((*parts[:-1], parts[-1].removeprefix(WHITEOUT.decode())))
            assert hidden in known
            assert "/".join(parts[:-1]) in {"", *directories}
        else:
            assert len(parts) == 1 or not seen["/".join(parts[:-1])]
            assert len(parts) == 1 or "/".join(parts[:-1]) in directories
        if member.islnk():
            assert seen[member.linkname]
        assert member.isreg() or member.isdir() or member.issym() or member.islnk() or member.isfifo()
        seen[member.name] = member.isreg()


@settings(max_examples=400, deadline=None)
@given(frames=st.lists(FRAMES, max_size=12), secrets=st.sampled_from(SecretPolicy))
def test_any_frames_are_a_layer_or_a_refusal(frames: list[CaptureFrame], secrets: SecretPolicy) -> None:
    _feed(frames, secrets)


@settings(max_examples=400, deadline=None)
@given(parts=st.lists(GOOD, max_size=8), secrets=st.sampled_from(SecretPolicy), kept=st.booleans())
def test_frames_that_are_nearly_right_are_a_layer_or_a_refusal(
    parts: list[list[CaptureFrame]], secrets: SecretPolicy, *, kept: bool
) -> None:
    if kept:  # in order, and each path once
        parts = list({part[0].path: part for part in parts if isinstance(part[0], ChangedEntry | DeletedPath)}.values())
        parts.sort(key=lambda part: getattr(part[0], "path", b"").replace(b"/", b"\0"))
    _feed(ended(itertools.chain.from_iterable(parts)), secrets)
