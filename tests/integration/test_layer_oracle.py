"""A base with our layer on it, unpacked by umoci, is the tree that is there: case by case, and for random changes."""

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.images.baseline_file import write_records
from sandboxd.images.layer_job import LayerJob
from sandboxd.images.ports import Baseline, LayerOrder, WrittenLayer
from sandboxd.images.tar_entries import WHITEOUT
from sandboxd.model.rootfs import EntryKind, walk_key
from tests.layers import AMPLE, expanded, members
from tests.rootfs_changes import CHANGES, Change, Snapshot, do_change, snapshot
from tests.rootfs_trees import Tree, records_of, start
from tests.umoci import mounted, needs_buildah, needs_umoci, pack, unpack

pytestmark = needs_umoci
TIME = 4
"""Of a snapshot's columns."""


@dataclass(slots=True, kw_only=True)
class Commit:
    """What one commit came to."""

    layer: WrittenLayer
    data: bytes
    tar: bytes

    @property
    def names(self) -> list[bytes]:
        return [os.fsencode(member.name) for member in members(self.tar)]

    @property
    def whiteouts(self) -> list[bytes]:
        return [name for name in self.names if name.rpartition(b"/")[2].startswith(WHITEOUT)]

    @property
    def left_out(self) -> dict[str, Sequence[str]]:
        return {one.reason: list(one.paths) for one in self.layer.left_out}


class Image:
    """A tree that is a base image from the moment this is made on."""

    def __init__(self, root: Path) -> None:
        self.place = Path(tempfile.mkdtemp(dir=root.parent))
        self.root = root
        self.base = snapshot(root)
        self.base_tar = pack(root)
        self.baseline = Baseline(
            file=self.place / "baseline", entries=write_records(self.place / "baseline", records_of(root))
        )
        self.tree = start(root)
        self._commits = 0

    def commit(self, tree: Tree | None = None, *, previous: Sequence[bytes] = (), zstd: bool = True) -> Commit:
        """Make a layer of what was changed."""
        self._commits += 1
        directory = self.place / f"layer-{self._commits}"
        directory.mkdir()
        job = LayerJob(LayerOrder(baseline=self.baseline, directory=directory, limits=AMPLE, zstd=zstd))
        try:
            for frame in (tree or self.tree).frames(previous=previous):
                job.take(frame)
            layer = job.finish()
        finally:
            job.close()
        return Commit(layer=layer, data=layer.file.read_bytes(), tar=expanded(layer.file))

    def started(self, commit: Commit) -> Path:
        """What a runtime makes of base and layer."""
        return unpack([self.base_tar, commit.tar], Path(tempfile.mkdtemp(dir=self.place)))

    def check(self, commit: Commit, *, without: Sequence[bytes] = ()) -> Path:
        """Hold base and layer to the tree, but for what is not kept."""
        started = self.started(commit)
        there = {path: what for path, what in snapshot(self.root, strict=False).items() if path not in without}
        assert snapshot(started) == self.expected(there)
        groups = links(started)
        for group in links(self.root):
            if any(self.expected(there).get(path) != self.base.get(path) for path in group):
                assert group in groups
        return started

    def expected(self, there: Snapshot) -> Snapshot:
        """The tree without what is not kept: times of the base's directories, and attributes that have no value."""
        result: Snapshot = {}
        for path, what in there.items():
            old, time = self.base.get(path), what[TIME]
            if old is not None and old[0] == what[0] == EntryKind.DIRECTORY:
                time = old[TIME]
            attributes = {name: value for name, value in what[-1].items() if value}
            result[path] = (*what[:TIME], time, *what[TIME + 1 : -1], attributes)
        return result

    def restart(self, commit: Commit) -> Commit:
        """Commit again from a start of the image, in which nothing was done."""
        started = self.started(commit)
        tree = Tree(root=started, baseline=self.tree.baseline, marker_ns=start(started).marker_ns)
        previous = sorted(
            (name for name in commit.names if not name.rpartition(b"/")[2].startswith(WHITEOUT)), key=walk_key
        )
        return self.commit(tree, previous=previous)


def links(root: Path) -> set[frozenset[bytes]]:
    """Which names are one file."""
    found: dict[int, set[bytes]] = {}
    for directory, _, files in os.walk(os.fsencode(root)):
        for name in files:
            path = os.path.join(directory, name)  # noqa: PTH118 - bytes
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                found.setdefault(status.st_ino, set()).add(os.path.relpath(path, os.fsencode(root)))
    return {frozenset(names) for names in found.values() if len(names) > 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for directory in ("etc/conf.d", "usr/bin", "usr/lib/python/deep", "opt/tool/data", "var/log", "srv"):
        (root / directory).mkdir(parents=True)
    for name in ("etc/passwd", "usr/bin/sh", "usr/lib/python/os.py", "usr/lib/python/deep/x", "opt/tool/data/a"):
        (root / name).write_bytes(name.encode())
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/dash").hardlink_to(root / "usr/bin/sh")
    for path in root.rglob("*"):
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    return root


@pytest.fixture
def image(root: Path) -> Image:
    return Image(root)


def test_a_rewrite_of_the_same_size_with_the_time_put_back_is_kept(image: Image, root: Path) -> None:
    before = (root / "etc/passwd").stat()
    (root / "etc/passwd").write_bytes(b"x" * before.st_size)
    os.utime(root / "etc/passwd", ns=(before.st_atime_ns, before.st_mtime_ns))

    assert (image.check(image.commit()) / "etc/passwd").read_bytes() == b"x" * before.st_size


def test_a_time_a_mode_an_owner_and_an_attribute_alone_are_kept(image: Image, root: Path) -> None:
    os.utime(root / "etc/passwd", (-5, -5))
    (root / "usr/bin/sh").chmod(0o4755)
    os.chown(root / "usr/lib/python/os.py", 4_000_000, 70_000)
    os.setxattr(root / "opt/tool/data/a", "user.note", b"\0\xff=")
    os.chown(root / "bin", 12, 13, follow_symlinks=False)
    (root / "srv").chmod(0o3777)
    os.setxattr(root / "etc/conf.d", "user.on", b"directory")

    commit = image.commit()

    started = image.check(commit)
    assert started.joinpath("usr/bin/sh").stat().st_mode & 0o7777 == 0o4755
    assert started.joinpath("usr/bin/dash").stat().st_ino == started.joinpath("usr/bin/sh").stat().st_ino


def test_a_file_capability_alone_is_kept(image: Image, root: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep
    os.setxattr(root / "usr/bin/sh", "security.capability", capability)

    started = image.check(image.commit())

    assert os.getxattr(started / "usr/bin/sh", "security.capability") == capability


def test_what_is_gone_is_one_whiteout_for_its_topmost_path(image: Image, root: Path) -> None:
    shutil.rmtree(root / "usr/lib/python")
    (root / "opt/tool/data/a").unlink()

    commit = image.commit()

    image.check(commit)
    assert commit.whiteouts == [b"opt/tool/data/.wh.a", b"usr/lib/.wh.python"]


def test_a_directory_that_was_made_anew_has_none_of_its_old_children(image: Image, root: Path) -> None:
    shutil.rmtree(root / "usr/lib/python")
    (root / "usr/lib/python/deep").mkdir(parents=True)
    (root / "usr/lib/python/new.py").write_bytes(b"new")

    image.check(image.commit())


def test_kinds_change_into_each_other(image: Image, root: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").mkdir()
    (root / "etc/passwd/inside").write_bytes(b"1")
    shutil.rmtree(root / "usr/lib/python")
    (root / "usr/lib/python").write_bytes(b"file")
    (root / "usr/bin/sh").unlink()
    (root / "usr/bin/sh").symlink_to("dash")
    (root / "bin").unlink()
    (root / "bin").mkdir()
    (root / "bin/inside").write_bytes(b"2")
    shutil.rmtree(root / "opt")
    (root / "opt").symlink_to("srv")
    (root / "etc/conf.d").rmdir()
    os.mkfifo(root / "etc/conf.d")

    image.check(image.commit())


def test_a_directory_is_renamed(image: Image, root: Path) -> None:
    (root / "usr/lib/python").rename(root / "srv/python")

    commit = image.commit()

    image.check(commit)
    assert commit.whiteouts == [b"usr/lib/.wh.python"]


def test_names_of_one_file_stay_one_file(image: Image, root: Path) -> None:
    (root / "srv/one").write_bytes(b"one")
    (root / "srv/two").hardlink_to(root / "srv/one")
    (root / "etc/z").hardlink_to(root / "srv/one")  # the walk meets this one first
    (root / "zsh").hardlink_to(root / "usr/bin/sh")  # of the base, where it has two names

    started = image.check(image.commit())

    assert links(started) == {
        frozenset({b"srv/one", b"srv/two", b"etc/z"}),
        frozenset({b"zsh", b"usr/bin/sh", b"usr/bin/dash"}),
    }


def test_names_in_any_bytes_and_of_any_length_are_kept(image: Image, root: Path) -> None:
    top = os.fsencode(root) + b"/srv/"
    names = [
        b"\xff\xfe",
        b"line\nfeed",
        b" space ",
        b"tab\t",
        b"back\\slash",
        "ä".encode(),
        b"=",
        b"n" * 99,
        b"n" * 101,
        b"\xe4" * 255,
    ]
    for name in names:
        Path(os.fsdecode(top + name)).write_bytes(name)
        Path(os.fsdecode(top + name[:250] + b".link")).symlink_to(os.fsdecode(name * 3))
    deep = root / "srv" / "/".join(["d" * 200] * 10)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"deep")
    (deep / "g").hardlink_to(deep / "f")

    image.check(image.commit())


def test_names_that_would_delete_pipes_sockets_and_devices(image: Image, root: Path) -> None:
    (root / "etc/.wh.passwd").write_bytes(b"evil")
    (root / "etc/.wh..wh..opq").write_bytes(b"evil")
    os.mkfifo(root / "srv/pipe", 0o620)
    os.mknod(root / "srv/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        (root / "etc/passwd").unlink()
        here = Path.cwd()
        os.chdir(root)  # a socket's path is short
        try:
            listener.bind("etc/passwd")
        finally:
            os.chdir(here)

        commit = image.commit()

    started = image.check(commit, without=[b"etc/.wh.passwd", b"etc/.wh..wh..opq", b"srv/null", b"etc/passwd"])
    assert commit.left_out == {
        "device": ["/srv/null"],
        "socket": ["/etc/passwd"],
        "whiteout_name": ["/etc/.wh..wh..opq", "/etc/.wh.passwd"],
    }
    assert sorted(path.name for path in (started / "etc").iterdir()) == ["conf.d"]


def test_directories_of_logs_are_kept_and_logs_are_not(image: Image, root: Path) -> None:
    (root / "var/log/nginx").mkdir(mode=0o750)
    os.chown(root / "var/log/nginx", 33, 4)
    (root / "var/log/nginx/access.log").write_bytes(b"GET /")

    commit = image.commit()
    again_later = root / "var/log/nginx/error.log"
    again_later.write_bytes(b"oh")

    status = (image.started(commit) / "var/log/nginx").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o750, 33, 4)
    assert image.commit().data == commit.data
    assert commit.left_out == {"excluded": ["/var/log/nginx/access.log"]}


def test_a_sparse_file_is_kept_with_zeros_in_its_holes(image: Image, root: Path) -> None:
    with (root / "srv/sparse").open("wb") as file:
        file.truncate(8 << 20)
        file.seek(5 << 20)
        file.write(b"data")

    commit = image.commit()

    image.check(commit)
    assert commit.layer.raw_bytes > 8 << 20 > 1 << 16 > commit.layer.compressed_bytes


def test_a_secret_that_is_gone_is_in_no_layer_any_more(image: Image, root: Path) -> None:
    secret = b"a-secret-of-no-form"
    (root / "srv/app.conf").write_bytes(secret)
    (root / "root/.ssh").mkdir(parents=True)
    (root / "root/.ssh/id_ed25519").write_bytes(b"a-secret-by-its-place")
    (root / "srv/.env").write_bytes(b"KEY=AIza" + b"SyA" + b"b" * 32)
    first = image.commit()
    (root / "srv/app.conf").unlink()

    second = image.commit(previous=[b"root", b"srv", b"srv/app.conf"])

    assert secret in first.tar
    for commit in (first, second):
        assert b"a-secret-by-its-place" not in commit.tar
        assert b"AIza" not in commit.tar
    assert secret not in second.tar
    assert first.left_out == {"secret": ["/root/.ssh"], "token": ["/srv/.env"]}


def test_nothing_changed_is_the_same_layer_also_after_a_start_from_it(image: Image, root: Path) -> None:
    assert image.commit().layer.entries == 0
    os.utime(root / "etc")
    mode = (root / "etc/passwd").stat().st_mode & 0o7777
    (root / "etc/passwd").chmod(0o600)
    (root / "etc/passwd").chmod(mode)
    assert image.commit().layer.entries == 0
    (root / "srv/new").mkdir()
    (root / "srv/new/file").write_bytes(b"new")
    (root / "usr/lib/python/os.py").unlink()
    (root / "zsh").hardlink_to(root / "usr/bin/sh")

    commit = image.commit()

    again = image.restart(commit)
    assert (again.layer.digest, again.layer.diff_id, again.layer.entries) == (
        commit.layer.digest,
        commit.layer.diff_id,
        commit.layer.entries,
    )
    assert image.restart(again).data == commit.data


@needs_buildah
def test_a_runtime_that_unpacks_each_layer_by_itself_makes_the_same_of_it(root: Path) -> None:
    os.chown(root / "opt/tool", 1000, 1000)
    (root / "opt/tool").chmod(0o700)
    image = Image(root)
    (root / "opt/tool/data/new").write_bytes(
        b"new"
    )  # in directories that did not change, and must not lose their owner
    (root / "usr/lib/python/os.py").unlink()
    (root / "zsh").hardlink_to(root / "usr/bin/sh")
    os.setxattr(root / "etc/passwd", "user.x", b"\0\xff")
    (root / "bin").unlink()
    (root / "bin").mkdir()
    shutil.rmtree(root / "var")
    (root / "var").write_bytes(b"a file")

    for zstd in (True, False):  # in two frames each, as there is a whiteout
        commit = image.commit(zstd=zstd)
        with mounted(image.base_tar, commit.layer, root.parent / commit.layer.media_type[-4:]) as started:
            assert snapshot(started) == image.expected(snapshot(root))


@settings(max_examples=60, deadline=None)
@given(before=st.lists(CHANGES, max_size=12), after=st.lists(CHANGES, max_size=12), zstd=st.booleans())
def test_a_base_with_its_layer_is_what_is_there_and_stays_so(
    before: list[Change], after: list[Change], *, zstd: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root"
        root.mkdir()
        for change in before:
            do_change(root, change)
        image = Image(root)
        for change in after:
            do_change(root, change)

        commit = image.commit(zstd=zstd)

        image.check(commit)
        assert commit.left_out.keys() <= {"attribute"}  # one that has no value
        assert image.commit(zstd=zstd).data == commit.data
        assert image.restart(commit).tar == commit.tar
