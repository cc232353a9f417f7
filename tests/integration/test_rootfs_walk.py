"""What a capture says of real trees, change by change: nothing that was changed is missed, and nothing else is sent."""

import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

from sandboxd.model.rootfs import EntryKind
from tests.rootfs_trees import Tree, start

FILE, DIRECTORY, SYMLINK = EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.SYMLINK
HARDLINK, FIFO = EntryKind.HARDLINK, EntryKind.FIFO


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small image."""
    root = tmp_path / "root"
    for directory in ("etc", "usr/bin", "usr/lib/python", "opt/tool/data", "var/log", "home/gemini"):
        (root / directory).mkdir(parents=True)
    for name in ("etc/passwd", "usr/bin/sh", "usr/lib/python/os.py", "opt/tool/data/a", "opt/tool/data/b"):
        (root / name).write_bytes(name.encode())
    (root / "home/gemini/.profile").write_bytes(b"profile")
    (root / "lib").symlink_to("usr/lib")
    (root / "usr/bin/dash").hardlink_to(root / "usr/bin/sh")
    return root


@pytest.fixture
def tree(root: Path) -> Tree:
    return start(root)


def test_nothing_changed_is_nothing_sent(tree: Tree) -> None:
    difference = tree.walk()

    assert (difference.entries, difference.deleted, difference.skipped) == ({}, [], {})
    assert difference.end is not None
    assert difference.end.entries == len(tree.baseline)


def test_a_rewrite_of_the_same_size_with_the_time_put_back_is_sent(tree: Tree) -> None:
    file = tree.root / "etc/passwd"
    before = file.stat()
    file.write_bytes(b"x" * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    difference = tree.walk()

    assert difference.contents == {b"etc/passwd": b"x" * before.st_size}


def test_a_time_in_the_past_is_sent(tree: Tree) -> None:
    os.utime(tree.root / "etc/passwd", (1, 1))

    assert tree.walk().entries[b"etc/passwd"].mtime == 1


@pytest.mark.parametrize("mode", [0o600, 0o4755, 0o2755, 0o1777])
def test_a_changed_mode_is_sent_whole(tree: Tree, mode: int) -> None:
    (tree.root / "etc/passwd").chmod(mode)

    difference = tree.walk()

    assert difference.kinds == {b"etc/passwd": FILE}
    assert difference.entries[b"etc/passwd"].mode == mode


def test_a_changed_owner_is_sent(tree: Tree) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(tree.root / "etc/passwd", 70_000, 70_001)
    os.chown(tree.root / "lib", 5, 6, follow_symlinks=False)

    difference = tree.walk()

    assert (difference.entries[b"etc/passwd"].uid, difference.entries[b"etc/passwd"].gid) == (70_000, 70_001)
    assert (difference.entries[b"lib"].uid, difference.entries[b"lib"].link) == (5, b"usr/lib")


def test_an_attribute_alone_is_sent_with_its_value(tree: Tree) -> None:
    os.setxattr(tree.root / "etc/passwd", "user.note", b"\0\xff")
    os.setxattr(tree.root / "opt/tool", "user.place", b"here")

    difference = tree.walk()

    assert difference.entries[b"etc/passwd"].xattrs == {b"user.note": b"\0\xff"}
    assert difference.entries[b"opt/tool"].xattrs == {b"user.place": b"here"}


def test_a_capability_of_a_program_is_sent(tree: Tree) -> None:
    value = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service, effective
    try:
        os.setxattr(tree.root / "usr/bin/sh", "security.capability", value)
    except PermissionError:
        pytest.skip("only root gives capabilities")

    assert tree.walk().entries[b"usr/bin/dash"].xattrs == {b"security.capability": value}


def test_of_what_is_gone_together_only_the_topmost_path_is_told(tree: Tree) -> None:
    shutil.rmtree(tree.root / "opt/tool")
    (tree.root / "etc/passwd").unlink()

    difference = tree.walk()

    assert difference.deleted == [b"etc/passwd", b"opt/tool"]
    assert difference.kinds == {b"etc": DIRECTORY, b"opt": DIRECTORY}


def test_a_directory_made_anew_loses_what_was_in_it(tree: Tree) -> None:
    shutil.rmtree(tree.root / "opt/tool/data")
    (tree.root / "opt/tool/data").mkdir()
    (tree.root / "opt/tool/data/c").write_bytes(b"new")

    difference = tree.walk()

    assert difference.deleted == [b"opt/tool/data/a", b"opt/tool/data/b"]
    assert difference.kinds == {b"opt/tool": DIRECTORY, b"opt/tool/data": DIRECTORY, b"opt/tool/data/c": FILE}


def test_a_directory_that_became_a_file_needs_no_deletions(tree: Tree) -> None:
    shutil.rmtree(tree.root / "opt/tool")
    (tree.root / "opt/tool").write_bytes(b"now a file")

    difference = tree.walk()

    assert difference.deleted == []
    assert difference.kinds == {b"opt": DIRECTORY, b"opt/tool": FILE}


def test_a_file_that_became_a_directory_is_sent_with_what_is_in_it(tree: Tree) -> None:
    (tree.root / "etc/passwd").unlink()
    (tree.root / "etc/passwd").mkdir()
    (tree.root / "etc/passwd/x").write_bytes(b"x")

    difference = tree.walk()

    assert difference.deleted == []
    assert difference.kinds == {b"etc": DIRECTORY, b"etc/passwd": DIRECTORY, b"etc/passwd/x": FILE}


def test_files_and_links_take_each_others_places(tree: Tree) -> None:
    (tree.root / "etc/passwd").unlink()
    (tree.root / "etc/passwd").symlink_to("../usr/bin/sh")
    (tree.root / "lib").unlink()
    (tree.root / "lib").mkdir()

    difference = tree.walk()

    assert difference.kinds == {b"etc": DIRECTORY, b"etc/passwd": SYMLINK, b"lib": DIRECTORY}
    assert difference.entries[b"etc/passwd"].link == b"../usr/bin/sh"
    assert difference.deleted == []


def test_a_link_with_another_target_of_the_same_length_is_sent(tree: Tree) -> None:
    (tree.root / "lib").unlink()
    (tree.root / "lib").symlink_to("usr/bin")

    assert tree.walk().entries[b"lib"].link == b"usr/bin"


def test_a_renamed_directory_is_sent_whole_though_its_files_are_old(tree: Tree) -> None:
    (tree.root / "opt/tool").rename(tree.root / "opt/other")

    difference = tree.walk()

    assert difference.deleted == [b"opt/tool"]
    assert {path for path, kind in difference.kinds.items() if kind is FILE} == {
        b"opt/other/data/a",
        b"opt/other/data/b",
    }


def test_new_names_of_one_new_file_stay_linked(tree: Tree) -> None:
    (tree.root / "opt/x").write_bytes(b"content")
    (tree.root / "etc/y").hardlink_to(tree.root / "opt/x")
    (tree.root / "usr/z").hardlink_to(tree.root / "opt/x")

    difference = tree.walk()

    assert difference.contents == {b"etc/y": b"content"}
    assert {path: entry.link for path, entry in difference.entries.items() if entry.kind is HARDLINK} == {
        b"opt/x": b"etc/y",
        b"usr/z": b"etc/y",
    }
    assert [difference.entries[path].names for path in (b"etc/y", b"opt/x")] == [3, 0]


def test_a_link_to_a_file_of_the_base_never_points_at_what_was_not_sent(tree: Tree) -> None:
    (tree.root / "opt/passwd").hardlink_to(tree.root / "etc/passwd")

    difference = tree.walk()

    assert difference.contents == {b"etc/passwd": b"etc/passwd"}
    assert difference.entries[b"opt/passwd"].link == b"etc/passwd"


def test_a_file_with_a_hole_has_its_whole_length(tree: Tree) -> None:
    with (tree.root / "opt/sparse").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(1 << 20)
        file.write(b"island")

    content = tree.walk().contents[b"opt/sparse"]

    assert len(content) == 5 << 20
    assert content.strip(b"\0") == b"island"


def test_odd_names_come_as_they_are(tree: Tree) -> None:
    names = [b"\xff\xfe", b"new\nline", b"-", b" ", b"a" * 255, "é".encode(), b"\xed\xb2\x80", b"\xf0\x9f\x90\xa7"]
    top = os.fsencode(tree.root)
    for name in names:
        with open(top + b"/opt/" + name, "wb") as file:  # noqa: PTH123 - bytes
            file.write(name)
    deep = b"opt/" + b"/".join([b"d" * 200] * 3)
    (tree.root / os.fsdecode(deep)).mkdir(parents=True)

    difference = tree.walk()

    assert difference.contents == {b"opt/" + name: name for name in names}
    assert deep in difference.entries


def test_pipes_are_sent_and_sockets_and_devices_are_not(tree: Tree) -> None:
    os.mkfifo(tree.root / "opt/pipe", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree.root / "opt/socket"))
        (tree.root / "etc/passwd").unlink()
        listener2 = socket.socket(socket.AF_UNIX)
        listener2.bind(str(tree.root / "etc/passwd"))
        listener2.close()
    skipped = {b"opt/socket": "socket", b"etc/passwd": "socket"}
    if os.geteuid() == 0:
        os.mknod(tree.root / "opt/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        skipped[b"opt/null"] = "device"

    difference = tree.walk()

    assert difference.entries[b"opt/pipe"].kind is FIFO
    assert difference.skipped == skipped
    assert difference.deleted == [b"etc/passwd"], "what the base has in a socket's place is gone"


def test_names_that_mean_deletions_in_a_layer_are_skipped(tree: Tree) -> None:
    (tree.root / "etc/.wh.passwd").write_bytes(b"evil")
    (tree.root / "etc/.wh..wh..opq").mkdir()
    (tree.root / "etc/.wh..wh..opq/x").write_bytes(b"evil")

    difference = tree.walk()

    assert difference.skipped == {b"etc/.wh.passwd": "whiteout_name", b"etc/.wh..wh..opq": "whiteout_name"}
    assert difference.kinds == {b"etc": DIRECTORY}


def test_of_a_mount_nothing_is_sent_and_nothing_below_it_is_missed(tree: Tree) -> None:
    shutil.rmtree(tree.root / "home/gemini")
    (tree.root / "home/gemini").mkdir()
    (tree.root / "home/gemini/work").write_bytes(b"on a volume")
    (tree.root / "etc/passwd").write_bytes(b"bound from the node")

    difference = tree.walk(left_out={b"home/gemini": "mount", b"etc/passwd": "mount"})

    assert difference.skipped == {b"home/gemini": "mount", b"etc/passwd": "mount"}
    assert difference.kinds == {b"home": DIRECTORY}
    assert difference.deleted == []


def test_caches_and_logs_lose_their_files_and_keep_their_directories(root: Path) -> None:
    (root / "var/cache/old").mkdir(parents=True)
    (root / "var/cache/old/gone").write_bytes(b"x")
    tree = start(root)
    shutil.rmtree(root / "var/cache/old")
    (root / "var/log/nginx").mkdir(mode=0o750)
    (root / "var/log/nginx/access.log").write_bytes(b"line")
    (root / "var/cache/apt/archives").mkdir(parents=True)
    (root / "var/cache/apt/archives/tree.deb").write_bytes(b"deb")
    (root / "tmp").mkdir()
    (root / "tmp/x").write_bytes(b"x")

    difference = tree.walk()

    assert difference.contents == {}
    assert difference.entries[b"var/log/nginx"].mode == 0o750
    assert {b"var/cache/apt", b"var/cache/apt/archives"} <= difference.entries.keys()
    assert difference.skipped == {
        b"tmp": "excluded",
        b"var/cache/apt/archives/tree.deb": "excluded",
        b"var/log/nginx/access.log": "excluded",
    }
    assert difference.deleted == [b"var/cache/old"]


def test_that_something_left_out_is_absent_is_no_deletion(root: Path) -> None:
    (root / "tmp/x").mkdir(parents=True)
    (root / "root/.ssh").mkdir(parents=True)
    (root / "root/.ssh/known_hosts").write_bytes(b"x")
    (root / "var/log/dpkg.log").write_bytes(b"x")
    (root / "etc/machine-id").write_bytes(b"x")
    tree = start(root)
    for directory in ("tmp", "root/.ssh"):
        shutil.rmtree(root / directory)
    for file in ("var/log/dpkg.log", "etc/machine-id"):
        (root / file).unlink()

    assert tree.walk().deleted == []


def test_secrets_are_told_and_never_sent(tree: Tree) -> None:
    secrets = {
        "root/.ssh/id_ed25519": b"root/.ssh",
        "root/.bash_history": b"root/.bash_history",
        "root/.docker/config.json": b"root/.docker/config.json",
        "etc/ssh/ssh_host_rsa_key": b"etc/ssh/ssh_host_rsa_key",
        "root/.npmrc": b"root/.npmrc",
        "etc/pip.conf": b"etc/pip.conf",
    }
    for name in secrets:
        (tree.root / name).parent.mkdir(parents=True, exist_ok=True)
        (tree.root / name).write_bytes(b"hunter2")
    (tree.root / "root/.npmrc").write_bytes(b"//registry.example/:_authToken=hunter2\n")
    (tree.root / "etc/pip.conf").write_bytes(b"[global]\nindex-url = https://user:hunter2@pypi.example/\n")
    (tree.root / "opt/pip.conf").write_bytes(b"[global]\nindex-url = https://pypi.example/\n")

    difference = tree.walk()

    assert difference.skipped == dict.fromkeys(secrets.values(), "secret")
    assert list(difference.contents) == [b"opt/pip.conf"]


def test_given_paths_are_left_out_with_all_below(tree: Tree) -> None:
    shutil.rmtree(tree.root / "opt/tool/data")
    (tree.root / "opt/tool/new").write_bytes(b"x")

    difference = tree.walk(exclude=[b"opt/tool"])

    assert (difference.entries, difference.deleted) == ({}, [])
    assert difference.skipped == {b"opt/tool": "excluded"}


def test_what_was_kept_before_is_sent_though_it_looks_as_in_the_base(tree: Tree) -> None:
    difference = tree.walk(previous=[b"etc/passwd", b"gone", b"opt/tool", b"usr/lib/gone"])

    assert difference.kinds == {b"etc/passwd": FILE, b"opt/tool": DIRECTORY}
    assert difference.deleted == []


def test_mount_points_that_the_runtime_makes_at_a_start_are_no_change_of_their_directory(root: Path) -> None:
    before = start(root)
    (root / "etc/hosts").touch()  # makes etc's time new
    late = Tree(root=root, baseline=before.baseline, marker_ns=start(root).marker_ns)

    assert late.walk(left_out={b"etc/hosts": "mount"}).entries == {}


def test_files_that_look_older_than_the_start_are_found_by_what_they_are(tree: Tree) -> None:
    (tree.root / "etc/passwd").write_bytes(b"longer than it was in the image")
    (tree.root / "opt/new").write_bytes(b"new")
    (tree.root / "lib").unlink()
    (tree.root / "lib").symlink_to("usr/bin")
    os.utime(tree.root / "lib", (1, 1), follow_symlinks=False)
    tree.marker_ns *= 2  # as if the clock had been set back far after the start

    difference = tree.walk()

    assert difference.kinds == {b"etc/passwd": FILE, b"lib": SYMLINK, b"opt/new": FILE}


def test_a_directory_deeper_than_a_layer_may_be_is_told_and_left_out(tree: Tree) -> None:
    place = os.open(tree.root / "opt", os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(200):
        os.mkdir("d", dir_fd=place)
        place, before = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place), place
        os.close(before)
    os.close(place)

    difference = tree.walk()

    assert list(difference.skipped.values()) == ["too_deep"]
    assert max(path.count(b"/") for path in difference.entries) == 127


def test_a_path_longer_than_a_layer_may_have_is_told_and_left_out(tree: Tree) -> None:
    place = os.open(tree.root / "opt", os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(16):
        os.mkdir("d" * 240, dir_fd=place)
        place, before = os.open("d" * 240, os.O_RDONLY | os.O_DIRECTORY, dir_fd=place), place
        os.close(before)
    os.close(place)

    difference = tree.walk()

    assert list(difference.skipped.values()) == ["too_deep"]
    assert max(map(len, difference.entries)) == 3 + 15 * 241
