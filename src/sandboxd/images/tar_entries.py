"""The one way in which an entry of a layer is written as tar: ustar, and PAX records for what does not fit. Pure.

Nothing depends on who writes, when, or where: no names of users and groups, no access times, whole seconds, records in
the order of their names. So one tree is one sequence of bytes. Numbers and names go where ustar has room for them;
https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html has both forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sandboxd.model.rootfs import EntryKind

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""What ends an archive."""
WHITEOUT: Final = b".wh."
"""Names that mean a deletion (image-spec, layer.md); nothing else in a layer may have such a name."""
XATTR: Final = b"SCHILY.xattr."
_NAME_BYTES: Final = 100
_MAX_ID: Final = 0o7777777
_MAX_SIZE: Final = 0o77777777777
_TYPES: Final = {
    EntryKind.FILE: b"0",
    EntryKind.HARDLINK: b"1",
    EntryKind.SYMLINK: b"2",
    EntryKind.DIRECTORY: b"5",
    EntryKind.FIFO: b"6",
}
_PAX_TYPE: Final = b"x"
_PAX_NAME: Final = b"././@PaxHeader"
_HEAD: Final = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0"
_TAIL: Final = b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
"""From the magic on: owners' names, device numbers, the prefix (unused: it cannot hold every path) and what is left."""


def entry_header(
    path: bytes,
    kind: EntryKind,
    *,
    mode: int,
    uid: int,
    gid: int,
    mtime: int,
    size: int = 0,
    link: bytes = b"",
    xattrs: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """Return all that comes before an entry's content: a multiple of `BLOCK`.

    Args:
        path: Relative, without a slash at its end.
        kind: What it is.
        mode: Permission bits, with setuid, setgid and sticky.
        uid: Of the owner, as the sandbox sees it.
        gid: Of the group.
        mtime: Seconds since the epoch; may be negative.
        size: Bytes of a FILE.
        link: Target of a SYMLINK; path of the file that a HARDLINK names.
        xattrs: Names without `=` and zeros.
    """
    name = path + b"/" if kind is EntryKind.DIRECTORY else path
    records = {XATTR + key: value for key, value in xattrs.items()} if xattrs else {}
    if len(name) > _NAME_BYTES:
        records[b"path"] = name
    if len(link) > _NAME_BYTES:
        records[b"linkpath"] = link
    if uid > _MAX_ID:
        records[b"uid"], uid = b"%d" % uid, 0
    if gid > _MAX_ID:
        records[b"gid"], gid = b"%d" % gid, 0
    if size > _MAX_SIZE:
        records[b"size"], size = b"%d" % size, 0
    if not 0 <= mtime <= _MAX_SIZE:
        records[b"mtime"], mtime = b"%d" % mtime, 0
    header = _block(name, mode, uid, gid, size, mtime, _TYPES[kind], link)
    if not records:
        return header
    body = b"".join(_record(key, records[key]) for key in sorted(records))
    return _block(_PAX_NAME, 0o644, 0, 0, len(body), 0, _PAX_TYPE, b"") + body + padding(len(body)) + header


def whiteout_header(path: bytes) -> bytes:
    """Return the entry that removes what lower layers have at a path, with all below."""
    parent, _, name = path.rpartition(b"/")
    place = parent + b"/" + WHITEOUT + name if parent else WHITEOUT + name
    return entry_header(place, EntryKind.FILE, mode=0, uid=0, gid=0, mtime=0)


def padding(size: int) -> bytes:
    """Return what fills content up to a whole block."""
    return bytes(-size % BLOCK)


def _block(name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, kind: bytes, link: bytes) -> bytes:
    head = _HEAD % (name[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0"), mode, uid, gid, size, mtime)
    tail = kind + link[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0") + _TAIL
    checksum = sum(head) + 8 * 0x20 + sum(tail)  # its own field counts as spaces
    return b"%s%06o\0 %s" % (head, checksum, tail)


def _record(key: bytes, value: bytes) -> bytes:
    """`length key=value`, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)
