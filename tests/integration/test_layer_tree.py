"""A base's entries, read from its layers, are what an independent reader unpacks of them: umoci, entry by entry."""

import os
import stat
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.images.layer_reading import LayerStream, entries_in
from sandboxd.images.layer_tree import LayerTree
from sandboxd.model.image_errors import ImageInvalidError
from sandboxd.model.rootfs import BaselineEntry, BaselineRecord, EntryKind, order_key
from tests.oci_images import Image, an_image, chunks, entry, hardlink, symlink, tar
from tests.rootfs_trees import baseline_of
from tests.unpacked import contents_of, needs_umoci, unpack, xattrs_of

pytestmark = needs_umoci
FILE, DIRECTORY = EntryKind.FILE, EntryKind.DIRECTORY
Layer = Sequence[tuple[tarfile.TarInfo, bytes]]

SCENARIOS: dict[str, list[Layer]] = {
    "directories that no layer tells": [[entry("a/b/c", b"1"), entry("a/b/d", b"2")]],
    "names with dots and slashes": [[entry("./"), entry("./a//b/./c", b"1"), entry("/d", b"2")]],
    "the root's own mode and owner": [[entry("./", mode=0o711, uid=5)], [entry("x", b"")]],
    "a file deleted": [[entry("a/b", b"1"), entry("a/c", b"2")], [entry("a/.wh.b", b"")]],
    "a tree deleted": [[entry("a/b/c", b"1"), entry("ab", b"2")], [entry(".wh.a", b"")]],
    "a tree deleted and made anew": [[entry("a/b", b"1")], [entry(".wh.a", b""), entry("a"), entry("a/c", b"2")]],
    "deleted, made anew, deleted": [
        [entry("a", b"1")],
        [entry(".wh.a", b"")],
        [entry("a", b"2")],
        [entry(".wh.a", b"")],
    ],
    "what was never there deleted": [[entry("a", b"1")], [entry(".wh.b", b""), entry("c"), entry("c/.wh.d", b"")]],
    "an opaque directory": [
        [entry("a/b", b"1"), entry("a/c/d", b"2"), entry("e", b"3")],
        [entry("a"), entry("a/.wh..wh..opq", b""), entry("a/f", b"4")],
    ],
    "an opaque directory that its layer fills first": [
        [entry("a/b", b"1"), entry("a/c/d", b"2"), entry("a/c/e", b"3")],
        [entry("a", mode=0o700), entry("a/c", mode=0o711), entry("a/c/e", b"4"), entry("a/.wh..wh..opq", b"")],
    ],
    "an opaque root": [[entry("a/b", b"1")], [entry("c", b"2"), entry(".wh..wh..opq", b"")]],
    "a file becomes a directory": [[entry("a", b"1")], [entry("a"), entry("a/b", b"2")]],
    "a directory becomes a file": [[entry("a/b", b"1")], [entry("a", b"2")]],
    "a directory becomes a link": [[entry("a/b", b"1"), entry("c/d", b"2")], [symlink("a", "c")]],
    "a link becomes a directory": [[entry("c/d", b"2"), symlink("a", "c")], [entry("a"), entry("a/b", b"1")]],
    "a directory changes its mode and keeps what is in it": [[entry("a/b", b"1")], [entry("a", mode=0o1777, uid=7)]],
    "a file below a link to a directory": [
        [entry("usr/lib/x", b"1"), symlink("lib", "usr/lib")],
        [entry("lib/y", b"2")],
    ],
    "a file below an absolute link": [[entry("usr/lib/x", b"1"), symlink("lib", "/usr/lib")], [entry("lib/y", b"2")]],
    "a link that leads above the root": [[entry("b/x", b"1"), symlink("a", "../../../b")], [entry("a/y", b"2")]],
    "a chain of links": [
        [entry("d/x", b"1"), symlink("c", "d"), symlink("b", "./c/."), symlink("a", "b")],
        [entry("a/y", b"2"), entry("b/.wh.x", b"")],
    ],
    "a link into nothing, with something below it": [[symlink("a", "b/c")], [entry("a/d", b"1")]],
    "a link whose target moves between layers": [
        [entry("one/x", b"1"), entry("two/x", b"2"), symlink("a", "one")],
        [entry("a/y", b"3"), symlink("a", "two"), entry("a/z", b"4")],
    ],
    "a second name": [[entry("a", b"1", mode=0o4755, uid=3), hardlink("b", "a"), hardlink("c/d", "./b")]],
    "a second name of a lower layer's file": [[entry("a", b"1")], [hardlink("b", "a")]],
    "a second name whose first is deleted": [[entry("a", b"1"), hardlink("b", "a")], [entry(".wh.a", b"")]],
    "a second name over a directory": [[entry("a", b"1"), entry("b/c", b"2")], [hardlink("b", "a")]],
    "a second name of a link": [[symlink("a", "nowhere"), hardlink("b", "a")]],
    "a pipe, and a device in its place": [
        [entry("a", kind=tarfile.FIFOTYPE, mode=0o600), entry("b", b"1")],
        [entry("b", kind=tarfile.CHRTYPE)],
    ],
    "the last of two with one name": [[entry("a", b"1"), entry("a", b"22", mode=0o600)]],
    "odd names": [[entry(b"a\xff\n", b"1"), entry("ü" * 120 + "/" + "b" * 200, b"2"), entry(b"-\\ \t", b"3")]],
    "names that mean nothing": [[entry(".wh..wh.plnk/1.2", b"x"), entry("a", b"1")]],
    "attributes": [
        [
            entry("a", b"1", xattrs={"user.x": b"\0\n=\xff", "user.y": b"2 y=z\n"}),
            entry("b", xattrs={"user.d": b"1"}),
            entry("c", b"2", xattrs={"security.capability": bytes.fromhex("0100000200040000000000000000000000000000")}),
        ]
    ],
    "times": [
        [
            entry("a", b"1", mtime=1_700_000_000.999_999_9),
            entry("b", b"2", mtime=0),
            entry("c", b"3", mtime=1.5),
            entry("d", b"4", mtime=5_000_000_000),
        ]
    ],
    "owners beyond 16 bits": [[entry("a", b"1", uid=3_000_000, gid=70_000)]],
    "content of every odd length": [[entry(f"{size}", os.urandom(size)) for size in (0, 1, 511, 512, 513, 1 << 20)]],
}


def records_of(image: Image, directory: Path, *, told: bool = False) -> list[BaselineRecord]:
    """Read an image's layers, given in odd pieces."""
    with LayerTree(directory / "tree") as tree:
        for layer in image.layers:
            pieces = iter(chunks(layer, 999))
            stream = LayerStream(lambda _, pieces=pieces: next(pieces, b""), limit=1 << 30)  # type: ignore[misc]  # bound at once
            tree.begin_layer()
            for one in entries_in(stream):
                tree.apply(one)
        return list(tree.records(told=told))


def check(image: Image, directory: Path) -> list[BaselineRecord]:
    """Hold what is read against what umoci unpacks; return it."""
    root = unpack(image, directory)
    expected = baseline_of(root)

    records = records_of(image, directory)

    found = [record.entry for record in records]
    assert [one.path for one in found] == sorted((one.path for one in found), key=order_key)
    assert found[0].path == b""
    assert found[0].kind is DIRECTORY
    assert (found[0].mode, found[0].uid) == (stat.S_IMODE(root.stat().st_mode), root.stat().st_uid)
    # A directory's time is whatever was done in it last, and no part of what is compared.
    assert [_timeless(one) for one in found[1:]] == [_timeless(one) for one in expected]
    kinds = {one.path: one.kind for one in found}
    hashes = {record.entry.path: record.sha256 for record in records if record.entry.kind is FILE}
    assert hashes == {path: digest for path, digest in contents_of(root).items() if kinds.get(path) is FILE}
    assert {record.entry.path: record.xattrs for record in records if record.xattrs} == xattrs_of(root)
    return records


def _timeless(one: BaselineEntry) -> tuple[object, ...]:
    mtime = 0 if one.kind is DIRECTORY else one.mtime
    return one.path, one.kind, oct(one.mode), one.uid, one.gid, one.size, mtime, one.link


@pytest.mark.parametrize("name", SCENARIOS)
def test_layers_make_what_umoci_makes_of_them(name: str, tmp_path: Path) -> None:
    check(an_image(*(tar(*layer) for layer in SCENARIOS[name])), tmp_path)


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
ENTRIES = st.one_of(
    st.builds(entry, PATHS, st.sampled_from([b"", b"1", b"22"]), mode=st.sampled_from([0o600, 0o4755])),
    st.builds(entry, PATHS, mode=st.sampled_from([0o700, 0o1777])),
    st.builds(symlink, PATHS, st.one_of(PATHS, PATHS.map("/{}".format), PATHS.map("../{}".format))),
    st.builds(hardlink, PATHS, PATHS),
)


@st.composite
def a_layer(draw: st.DrawFn) -> Layer:
    """As writers make them: what is deleted comes first, and below directories that are there."""
    gone = draw(st.lists(PATHS, max_size=2))
    deleted = [one for path in gone for one in (*_above(path), entry(_whiteout(path), b""))]
    opaque = [
        one for path in draw(st.lists(PATHS, max_size=1)) for one in (entry(path), entry(f"{path}/.wh..wh..opq", b""))
    ]
    return [*deleted, *opaque, *draw(st.lists(ENTRIES, max_size=8))]


def _above(path: str) -> Layer:
    return [entry(path.rpartition("/")[0])] if "/" in path else []


def _whiteout(path: str) -> str:
    above, _, name = path.rpartition("/")
    return f"{above}/.wh.{name}" if above else f".wh.{name}"


@settings(max_examples=60, deadline=None)
@given(layers=st.lists(a_layer(), min_size=1, max_size=3))
def test_any_layers_make_what_umoci_makes_of_them(layers: list[Layer]) -> None:
    image = an_image(*(tar(*layer) for layer in layers))
    with tempfile.TemporaryDirectory() as directory:
        try:
            records_of(image, Path(directory))
        except ImageInvalidError:
            return
        check(image, Path(directory))
