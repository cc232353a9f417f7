"""Changes to real trees for property tests, and what is there afterwards."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from sandboxd.model.rootfs import EntryKind
from tests.rootfs_trees import all_paths, entry_at

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
    st.tuples(st.just("owner"), PATHS, st.sampled_from([0, 33, 70_000, 4_000_000])),
)
Change = tuple[Any, ...]  # Any: what a change needs depends on its kind
Snapshot = dict[bytes, tuple[Any, ...]]


def do_change(root: Path, change: Change) -> None:
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
            case "owner":
                os.chown(place, change[2], change[2], follow_symlinks=False)
            case "pipe":
                os.mkfifo(place)
            case _:
                pass


def snapshot(root: Path, *, strict: bool = True) -> Snapshot:
    """What is there: kind, mode, owners, time, link, content and attributes by path.

    Of a kind that no image holds nothing may be there; or it is passed over, where this is not strict.
    """
    found: Snapshot = {}
    for path in all_paths(root):
        place = os.fsencode(root) + b"/" + path
        entry = entry_at(root, path)
        if entry is None and not strict:
            continue
        assert entry is not None
        content, attributes = b"", {}
        if entry.kind is EntryKind.FILE:
            content = Path(os.fsdecode(place)).read_bytes()
        if entry.kind in {EntryKind.FILE, EntryKind.DIRECTORY}:
            attributes = {os.fsencode(name): os.getxattr(place, name) for name in os.listxattr(place)}
        mode = entry.mode
        found[path] = (entry.kind, mode, entry.uid, entry.gid, entry.mtime, entry.link, content, attributes)
    return found
