"""Trees for tests of backups: one with everything that is hard to keep, and all that can be said of a tree."""

from __future__ import annotations

import os
import socket
import struct
from datetime import timedelta
from pathlib import Path
from typing import Any

from sandboxd.volumes.ports import BackupProgress
from tests.rootfs_changes import snapshot
from tests.rootfs_trees import all_paths

PATIENCE = timedelta(seconds=150)
"""Restic derives the key anew in each call, and a machine with 20 runnable processes is that much slower."""
BACKUP_PASSWORD = "a secret\n"
"""What opens the repository of the fixture `empty_backups`."""
DEEP = 2_100
"""Levels: more than Python calls itself, and a longer path than the kernel takes."""
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_bind_service=ep, as the kernel keeps it."""
ACCESS_LIST = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, may, who)
    for tag, may, who in (
        (0x01, 6, 0xFFFFFFFF),  # user::rw-
        (0x02, 4, 1234),  # user:1234:r--
        (0x04, 4, 0xFFFFFFFF),  # group::r--
        (0x08, 5, 4321),  # group:4321:r-x
        (0x10, 5, 0xFFFFFFFF),  # mask::r-x
        (0x20, 0, 0xFFFFFFFF),  # other::---
    )
)
"""An access list as setfacl makes it."""


def ignore(progress: BackupProgress) -> None:
    pass


def everything(root: Path) -> dict[bytes, Any]:  # Any: what is said of a path depends on its kind
    """Modes, owners, times in nanoseconds, links, contents, attributes, and which names are one file; the root too."""
    said: dict[bytes, Any] = {}
    names: dict[int, list[bytes]] = {}
    for path, what in snapshot(root).items():
        place = os.fsencode(root) + b"/" + path
        status = os.lstat(place)
        attributes = {name: os.getxattr(place, name, follow_symlinks=False) for name in _attributes(place)}
        said[path] = (*what, status.st_mtime_ns, attributes)
        if status.st_nlink > 1 and not os.path.isdir(place):  # noqa: PTH112 - bytes
            names.setdefault(status.st_ino, []).append(path)
    status = root.stat()
    attributes = {name: os.getxattr(root, name) for name in os.listxattr(root)}
    said[b""] = (oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, attributes)
    return {**said, b"/links": sorted(sorted(one) for one in names.values())}


def _attributes(place: bytes) -> list[str]:
    return os.listxattr(place, follow_symlinks=False)


def a_deep_tree(top: Path) -> None:
    """Make a directory in a directory in a directory, with a file in the last one."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def a_hard_tree(root: Path) -> None:
    """Make a tree with all that is promised, and a socket, which is not."""
    (root / "d/e").mkdir(parents=True)
    for name in (b"na\nme\xff*?[a]\\", b"$HOME", b"-rf", b" ", b"\xc3\xa9", b"x" * 255, b"a=b,c", b'"'):
        with open(os.fsencode(root) + b"/d/" + name, "wb") as file:  # noqa: PTH123 - bytes
            file.write(name)
    program = root / "program"
    program.write_bytes(b"hello")
    (root / "d/same").hardlink_to(program)
    (root / "empty").touch(mode=0o000)
    (root / "nowhere").symlink_to("../../../etc/passwd")
    (root / "odd").symlink_to(os.fsdecode(b"\xff\xfe"))
    os.mkfifo(root / "pipe", 0o620)
    with (root / "holes").open("wb") as file:
        file.truncate(32 << 20)
        file.seek(20 << 20)
        file.write(b"middle")
    os.setxattr(program, "user.x", b"\0\xff")
    os.setxattr(root / "d", "user.of-a-directory", b"1")
    os.setxattr(root, "user.of-the-root", b"")
    (root / "shared").mkdir()
    (root / "shared/notes").touch()
    os.setxattr(root / "shared/notes", "system.posix_acl_access", ACCESS_LIST)
    os.setxattr(root / "shared", "system.posix_acl_default", ACCESS_LIST)
    if os.geteuid() == 0:
        os.lchown(root / "nowhere", 1, 2)
        os.chown(root / "d/e", 100_000, 4_000_000_000)
        os.chown(root, 1000, 1001)
        os.setxattr(program, "security.capability", CAPABILITY)
        os.setxattr(root / "d", "trusted.x", b"t")
    program.chmod(0o4755)
    (root / "d").chmod(0o3775)
    os.utime(program, ns=(1, 123_456_789_123_456_789))
    os.utime(root / "nowhere", ns=(5, 1_234_567_890), follow_symlinks=False)
    os.utime(root / "d/e", ns=(5, 1))
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root)  # the address of a socket has room for 107 bytes
        server.bind("socket")
        os.chdir(here)
    root.chmod(0o1750)
    os.utime(root, ns=(7, 4_102_444_800_000_000_001))


def without_sockets(root: Path) -> None:
    """Take away what is not kept, with the times as they were."""
    before = {path: root.joinpath(os.fsdecode(path)).lstat() for path in (b".", *all_paths(root))}
    for path in before:
        place = root / os.fsdecode(path)
        if place.is_socket():
            place.unlink()
            of = place.parent.relative_to(root)
            status = before[os.fsencode(of)]
            os.utime(place.parent, ns=(status.st_atime_ns, status.st_mtime_ns))
