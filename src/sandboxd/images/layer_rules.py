"""What of a captured entry may be in a layer, and in which form. Pure; knows nothing of other entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from sandboxd.images.layer_report import invalid
from sandboxd.images.tar_entries import WHITEOUT
from sandboxd.model.rootfs import BaselineRecord, ChangedEntry, EntryKind
from sandboxd.model.rootfs_rules import EXCLUDED, is_secret, keeps_directories_only

PATH_BYTES: Final = 4096
NAME_BYTES: Final = 255
DEPTH: Final = 128
"""The agent's limits, of which the first two are the kernel's."""
KEPT_PATH_BYTES: Final = 3840
"""Longest path in a layer. A node unpacks it below a directory of its own, and for the kernel both are one path of at
most 4,096: an image with a longer one boots nowhere."""
MOST_ID: Final = (1 << 32) - 2
"""The last one means "no change" to chown."""
EARLIEST: Final = -(1 << 31)
LATEST: Final = (1 << 34) - (1 << 31) - 1
"""What ext4 can hold, in seconds since the epoch: 1901 to 2446. A node cannot keep another time anyway."""
XATTR_BYTES: Final = 1 << 16
"""The kernel's limit of one value."""
XATTRS_BYTES: Final = 1 << 18
"""Of all of an entry; with path and link it stays far below the 1 MiB that Go's reader of tar takes."""
CAPABILITY: Final = b"security.capability"
_USER: Final = b"user."
_QUIET: Final = (b"trusted.", b"security.selinux", b"security.ima", b"security.evm")
"""Attributes that belong to the node or its overlay: dropped, and not named."""
_PROGRAMS: Final = (
    b"bin/",
    b"boot/",
    b"etc/",
    b"lib/",
    b"lib32/",
    b"lib64/",
    b"libx32/",
    b"sbin/",
    b"usr/",
    b"var/lib/apt/",
    b"var/lib/dpkg/",
)


def check_name(path: bytes) -> None:
    """Refuse a path that leads elsewhere or cannot be there; its parent was looked at before.

    Raises:
        CaptureInvalidError: It is one.
    """
    name = path[path.rfind(b"/") + 1 :]
    if name in {b"", b".", b".."} or b"\0" in name:
        raise invalid("a path that is none", path)
    if name.startswith(WHITEOUT):
        raise invalid("a name that would delete what it names", path)
    if len(name) > NAME_BYTES or len(path) > PATH_BYTES or path.count(b"/") >= DEPTH:
        raise invalid("a path that is too long", path)


def check_entry(entry: ChangedEntry) -> None:
    """Refuse what no file system has.

    Raises:
        CaptureInvalidError: It is that.
    """
    if not 0 <= entry.mode <= 0o7777:
        raise invalid("a mode that is none", entry.path)
    if not (0 <= entry.uid <= MOST_ID and 0 <= entry.gid <= MOST_ID):
        raise invalid("an owner that is none", entry.path)
    linked = entry.kind in {EntryKind.SYMLINK, EntryKind.HARDLINK}
    if linked != bool(entry.link) or len(entry.link) > PATH_BYTES or b"\0" in entry.link:
        raise invalid("a link that is none", entry.path)
    if sum(map(len, entry.xattrs)) + sum(map(len, entry.xattrs.values())) > XATTRS_BYTES:
        raise invalid("too many attributes", entry.path)


def reason_to_leave_out(path: bytes, *, directory: bool) -> str | None:
    """Why a path is never kept, whoever sends it; None where it is."""
    if path in EXCLUDED:
        return "excluded"
    if len(path) > KEPT_PATH_BYTES:
        return "too_deep"
    if is_secret(path):
        return "secret"
    if not directory and keeps_directories_only(path):
        return "excluded"
    return None


def bounded_time(seconds: int) -> int:
    """Return a time that every node can keep."""
    return min(max(seconds, EARLIEST), LATEST)


def kept_attributes(attributes: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return those that a layer carries: file capabilities, and what people and programs have set."""
    return {name: value for name, value in attributes.items() if _is_kept(name, value)}


def lost_attributes(attributes: Iterable[bytes], kept: Mapping[bytes, bytes]) -> bool:
    """Whether one is dropped that somebody may miss, as an access list."""
    return any(name not in kept and not name.startswith(_QUIET) for name in attributes)


def _is_kept(name: bytes, value: bytes) -> bool:
    # PAX takes a record without a value for none, and ends a name at the first equals sign.
    if not 0 < len(value) <= XATTR_BYTES or b"=" in name or b"\0" in name:
        return False
    return name == CAPABILITY or (name.startswith(_USER) and len(name) > len(_USER))


def same_metadata(entry: ChangedEntry, record: BaselineRecord | None) -> bool:
    """Whether kind, owner, mode, time, link and attributes are the base's.

    A directory's time says nothing (the runtime makes mount points in it), and a symbolic link has no mode. A HARDLINK
    is never the same: it is the file that it names that has all this.
    """
    if record is None or record.entry.kind is not entry.kind:
        return False
    base, kind = record.entry, entry.kind
    return (
        (entry.uid, entry.gid, entry.link) == (base.uid, base.gid, base.link)
        and (kind is EntryKind.SYMLINK or entry.mode == base.mode)
        and (kind is EntryKind.DIRECTORY or bounded_time(entry.mtime) == bounded_time(base.mtime))
        and kept_attributes(entry.xattrs) == kept_attributes(record.xattrs)
    )


def belongs_to_a_program(path: bytes, mode: int) -> bool:
    """Whether half of this file would break a program or a package: its place says so, or that it can be run."""
    return path.startswith(_PROGRAMS) or bool(mode & 0o111)
