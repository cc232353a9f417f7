"""The base with what a walk says of it is what is there: for any sequence of changes to real trees."""

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.model.rootfs import EntryKind
from tests.rootfs_changes import CHANGES, Change, Snapshot, do_change, snapshot
from tests.rootfs_trees import Difference, start


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
            do_change(root, change)
        base = snapshot(root)
        tree = start(root)
        for change in after:
            do_change(root, change)

        difference = tree.walk()

        assert _applied(base, difference) == snapshot(root)
        assert not difference.skipped
        kept = {path for path, what in snapshot(root).items() if base.get(path) == what}
        resent = kept & difference.entries.keys()
        assert all(_touched(root, path, tree.marker_ns) for path in resent), "what nobody touched is not sent"


def _touched(root: Path, path: bytes, marker_ns: int) -> bool:
    status = os.lstat(os.fsencode(root) + b"/" + path)
    return status.st_ctime_ns >= marker_ns or stat.S_ISDIR(status.st_mode)
