"""A layer applied to its base by the program that kaniko runs: the tree that is there, but for `user` attributes."""

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.images import applying
from sandboxd.images.tar_entries import END, entry_header, whiteout_header
from sandboxd.model.rootfs import EntryKind
from tests.integration.test_layer_oracle import Image, image, links, root
from tests.rootfs_changes import CHANGES, Change, Snapshot, do_change, snapshot
from tests.umoci import needs_umoci, unpack

__all__ = ["image", "root"]
pytestmark = needs_umoci


def without_user_attributes(there: Snapshot) -> Snapshot:
    """What kaniko would keep of it anyway."""
    kept = {b"security.capability", "security.capability"}
    return {path: (*what[:-1], {k: v for k, v in what[-1].items() if k in kept}) for path, what in there.items()}


def applied(image: Image, tar_gz: Path) -> Path:
    """The base as a runtime has it, and the layer applied by a process as kaniko starts it."""
    place = unpack([image.base_tar], Path(tempfile.mkdtemp(dir=image.place)))
    command = [sys.executable, "-I", "-S", applying.__file__, str(tar_gz), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return place


def check(image: Image) -> Path:
    place = applied(image, image.commit(zstd=False).layer.file)
    expected = image.expected(snapshot(image.root, strict=False))
    assert without_user_attributes(snapshot(place)) == without_user_attributes(expected)
    groups = links(place)
    for group in links(image.root):
        if any(expected.get(path) != image.base.get(path) for path in group):
            assert group in groups
    return place


def test_of_everything_at_once_the_tree_comes_out(image: Image, root: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep
    shutil.rmtree(root / "usr/lib/python")
    (root / "usr/lib/python").write_bytes(b"a file where a directory was")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd/inside").mkdir(parents=True)
    (root / "bin").unlink()
    (root / "bin/sub").mkdir(parents=True)
    (root / "bin/sub/program").write_bytes(b"x" * 3_000_000)
    (root / "bin/sub/program").chmod(0o6755)
    os.chown(root / "bin/sub/program", 33, 70_000)
    (root / "bin/sub/program").chmod(0o6755)
    (root / "srv/again").hardlink_to(root / "bin/sub/program")
    (root / "srv/link").symlink_to("../nowhere")
    os.utime(root / "srv/link", (1_500_000_000, 1_500_000_000), follow_symlinks=False)
    os.mkfifo(root / "srv/pipe", 0o640)
    os.setxattr(root / "usr/bin/sh", "security.capability", capability)
    (root / "srv" / ("long" * 60)).mkdir()
    (root / "srv" / ("long" * 60) / ("name" * 60)).write_bytes(b"deep")
    Path(os.fsdecode(os.fsencode(root) + b"/srv/\xff\n")).write_bytes(b"odd")
    (root / "opt/tool/data/a").unlink()
    (root / "var/log").chmod(0o1777)

    place = check(image)

    assert os.getxattr(place / "usr/bin/sh", "security.capability") == capability
    assert place.stat().st_mtime == 0


@settings(max_examples=15, deadline=None)
@given(st.lists(CHANGES, max_size=8), st.lists(CHANGES, max_size=8))
def test_random_changes_come_out(before: list[Change], after: list[Change]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root"
        root.mkdir()
        for change in before:
            do_change(root, change)
        image = Image(root)
        for change in after:
            do_change(root, change)

        check(image)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (entry_header(b"../out", EntryKind.FILE, mode=0, uid=0, gid=0, mtime=0) + END, "the path"),
        (entry_header(b"/etc/out", EntryKind.FILE, mode=0, uid=0, gid=0, mtime=0) + END, "the path"),
        (entry_header(b"kaniko/executor", EntryKind.FILE, mode=0, uid=0, gid=0, mtime=0) + END, "the path"),
        (entry_header(b"kaniko", EntryKind.SYMLINK, mode=0, uid=0, gid=0, mtime=0, link=b"/etc") + END, "the path"),
        (whiteout_header(b"kaniko") + END, "the path"),
        (
            entry_header(b"etc/new", EntryKind.HARDLINK, mode=0, uid=0, gid=0, mtime=0, link=b"kaniko/.docker/x") + END,
            "the path",
        ),
        (entry_header(b"leads/out", EntryKind.FILE, mode=0, uid=0, gid=0, mtime=0) + END, "Not a directory"),
        (whiteout_header(b"leads/kept") + END, "Not a directory"),
        (
            entry_header(b"etc/new", EntryKind.HARDLINK, mode=0, uid=0, gid=0, mtime=0, link=b"leads/kept") + END,
            "Not a directory",
        ),
        (entry_header(b"etc/new", EntryKind.FILE, mode=0, uid=0, gid=0, mtime=0, size=4096) + b"cut", "damaged"),
        (b"no tar at all" * 100, "damaged"),
    ],
)
def test_what_no_layer_of_ours_has_ends_it_and_nothing_outside_is_touched(
    tmp_path: Path, data: bytes, words: str
) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").write_bytes(b"kept")
    (tmp_path / "root/leads").symlink_to("../outside")
    (tmp_path / "layer").write_bytes(gzip.compress(data))

    done = subprocess.run(
        [sys.executable, "-I", "-S", applying.__file__, str(tmp_path / "layer"), str(tmp_path / "root")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("applying: ")
    assert words in done.stderr
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["kept"]
    assert not (tmp_path / "root/etc/new").exists() or b"cut" not in (tmp_path / "root/etc/new").read_bytes()[4:]
