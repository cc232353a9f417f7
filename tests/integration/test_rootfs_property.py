"""The base with what a walk says of it is what is there: for any sequence of changes to real trees."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.model.rootfs import EntryKind
from tests.rootfs_trees import Difference, all_paths, entry_at, start

NAMES = st.sampled_from([b"a", b"b", b"a-", b"a\n", b"\xff"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
CONTENTS = st.sampled_from([b"", b"one", b"two", b"three" * 10])
CHANGES = st.one_of(
    st.tuples(st.just("write"), PATHS, CONTENTS),
    st.tuples(st.just("write-keeping-time"), PATHS, CONTENTS),
    st.tuples(st.just("directory"), PATHS),
    st.tuples(st.just("remove"), PATHS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("hardlink"), PATHS, PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("mode"), PATHS, st.sampled_from([0o700, 0o4755, 0o1777, 0o640])),
    st.tuples(st.just("time"), PATHS, st.integers(0, 1 << 31)),
    st.tuples(st.just("attribute"), PATHS, CONTENTS),
    st.tuples(st.just("pipe"), PATHS),
)
Change = tuple[Any, ...]  # Any: what a change needs depends on its kind
Snapshot = dict[bytes, tuple[Any, ...]]


def _change(root: Path, change: Change) -> None:
    """Do it where it can be done; what the kernel refuses is no change."""
    path = os.fsencode(root) + b"/" + change[1]
    place = Path(os.fsdecode(path))
    with contextlib.suppress(OSError):
        match change[0]:
            case "write":
                place.parent.mkdir(parents=True, exist_ok=True)
                if not place.is_symlink() and not place.is_fifo():
                    place.write_bytes(change[2])
            case "write-keeping-time" if place.is_file() and not place.is_symlink():
                before = place.stat()
                place.write_bytes(change[2])
                os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
            case "directory":
                place.mkdir(parents=True)
            case "remove" if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            case "remove":
                place.unlink()
            case "link":
                place.symlink_to(os.fsdecode(change[2]))
            case "hardlink":
                os.link(os.fsencode(root) + b"/" + change[2], path, follow_symlinks=False)
            case "rename":
                place.rename(Path(os.fsdecode(os.fsencode(root) + b"/" + change[2])))
            case "mode" if not place.is_symlink():
                place.chmod(change[2])
            case "time":
                os.utime(place, (change[2], change[2]), follow_symlinks=False)
            case "attribute" if not place.is_symlink():
                os.setxattr(place, "user.x", change[2])
            case "pipe":
                os.mkfifo(place)
            case _:
                pass


def _snapshot(root: Path) -> Snapshot:
    found: Snapshot = {}
    for path in all_paths(root):
        place = os.fsencode(root) + b"/" + path
        entry = entry_at(root, path)
        assert entry is not None
        content, attributes = b"", {}
        if entry.kind is EntryKind.FILE:
            content = Path(os.fsdecode(place)).read_bytes()
        if entry.kind in {EntryKind.FILE, EntryKind.DIRECTORY}:
            attributes = {os.fsencode(name): os.getxattr(place, name) for name in os.listxattr(place)}
        mode = entry.mode
        found[path] = (entry.kind, mode, entry.uid, entry.gid, entry.mtime, entry.link, content, attributes)
    return found


def _applied(base: Mapping[bytes, tuple[Any, ...]], difference: Difference) -> Snapshot:
    result = dict(base)
    for path in difference.deleted:
        assert path in result, f"{path!r} is deleted, and was not there, or with its parent already"
        result = {other: what for other, what in result.items() if other != path and not _below(other, path)}
    for path, entry in difference.entries.items():
        if entry.kind is not EntryKind.DIRECTORY:
            result = {other: what for other, what in result.items() if not _below(other, path)}
        content = difference.contents.get(path, b"")
        kind, link, attributes = entry.kind, entry.link, dict(entry.xattrs)
        if kind is EntryKind.HARDLINK:
            kind, link, content, attributes = EntryKind.FILE, b"", result[link][6], result[link][7]
        result[path] = (kind, entry.mode, entry.uid, entry.gid, entry.mtime, link, content, attributes)
    return result


def _below(path: bytes, directory: bytes) -> bool:
    return path.startswith(directory + b"/")


@settings(max_examples=60, deadline=None)
@given(before=st.lists(CHANGES, max_size=12), after=st.lists(CHANGES, max_size=12))
def test_the_base_with_the_difference_is_what_is_there(before: list[Change], after: list[Change]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root"
        root.mkdir()
        for change in before:
            _change(root, change)
        base = _snapshot(root)
        tree = start(root)
        for change in after:
            _change(root, change)

        difference = tree.walk()

        assert _applied(base, difference) == _snapshot(root)
        assert not difference.skipped
        kept = {path for path, what in _snapshot(root).items() if base.get(path) == what}
        resent = kept & difference.entries.keys()
        assert all(_touched(root, path, tree.marker_ns) for path in resent), "what nobody touched is not sent"


def _touched(root: Path, path: bytes, marker_ns: int) -> bool:
    status = os.lstat(os.fsencode(root) + b"/" + path)
    return status.st_ctime_ns >= marker_ns or stat.S_ISDIR(status.st_mode)
