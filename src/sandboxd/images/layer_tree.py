"""What an image's layers make when they are applied one after the other, in a file: memory stays the same for any size.

It does what container runtimes do (containerd's `archive.Apply`): deletions hide what lower layers have, links to
directories are followed within the root, directories that no layer tells are there all the same, and the last of two
entries with one path counts. The file is an index by the order of a walk, so what comes out needs no sorting.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from sandboxd.images.layer_reading import PATH_BYTES, LayerEntry, TarKind
from sandboxd.model.image_errors import ImageInvalidError
from sandboxd.model.rootfs import BaselineEntry, BaselineRecord, EntryKind, order_key

ENTRIES: Final = 4_000_000
"""Most entries of an image's layers: ten times what images have that are full of node_modules."""
WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
_AUFS: Final = b".wh..wh."
"""Names that one file system kept for itself in layers; they mean nothing."""
_LINKS: Final = 255
"""Links that are followed on the way to a directory, as containerd does."""
_KNOWN: Final = 10_000
_CACHE_KIB: Final = 32 << 10
_KINDS: Final = (*TarKind,)
_NUMBERS: Final = {kind: number for number, kind in enumerate(_KINDS)}
_DIRECTORY: Final = _NUMBERS[TarKind.DIRECTORY]
_SYMLINK: Final = _NUMBERS[TarKind.SYMLINK]
_OURS: Final = {
    _NUMBERS[TarKind.FILE]: EntryKind.FILE,
    _DIRECTORY: EntryKind.DIRECTORY,
    _SYMLINK: EntryKind.SYMLINK,
    _NUMBERS[TarKind.FIFO]: EntryKind.FIFO,
}
"""What comes out; devices are none of a baseline."""
_IMPLIED: Final = -1
"""The layer of a directory that none has told."""
_TABLE: Final = """
CREATE TABLE entry (
    key BLOB PRIMARY KEY, layer INTEGER, kind INTEGER, mode INTEGER, uid INTEGER, gid INTEGER, size INTEGER,
    mtime INTEGER, link BLOB, sha256 BLOB, xattrs TEXT
) WITHOUT ROWID
"""
_BELOW: Final = "key > ? AND key < ?"


class LayerTree:
    """One tree; use it as a context. Its file is the caller's to remove."""

    def __init__(self, file: Path) -> None:
        """Begin with an empty root in a new file."""
        file.unlink(missing_ok=True)
        self._sql = sqlite3.connect(file, isolation_level=None)
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}", "locking_mode=EXCLUSIVE"):
            self._sql.execute(f"PRAGMA {setting}")
        self._sql.execute(_TABLE)
        self._sql.execute("BEGIN")
        self._known: dict[bytes, bytes] = {}
        """Where directories are, by the names that layers call them."""
        self._layer = -1
        self._applied = 0
        self._put(b"", _implied(b""), _IMPLIED)

    def __enter__(self) -> Self:
        """Use it for a block."""
        return self

    def __exit__(self, *_: object) -> None:
        self._sql.close()

    def begin_layer(self) -> None:
        """Entries from here on are of the next layer."""
        self._layer += 1

    def apply(self, entry: LayerEntry) -> None:
        """Apply one entry.

        Raises:
            ImageInvalidError: It cannot be: a file is where its directory should be, a link leads nowhere, or there
                are more than `ENTRIES`.
        """
        self._applied += 1
        if self._applied > ENTRIES:
            raise ImageInvalidError(f"The image has more than {ENTRIES} entries.")
        if not entry.path:
            if entry.kind is TarKind.DIRECTORY:
                self._put(b"", entry, self._layer)
            return
        above, _, name = entry.path.rpartition(b"/")
        directory = self._directory(above)
        if name == OPAQUE:
            self._hide(directory, itself=False)
        elif name.startswith(WHITEOUT):
            if not name.startswith(_AUFS) and name != WHITEOUT:
                self._hide(_join(directory, name.removeprefix(WHITEOUT)), itself=True)
        elif entry.kind is TarKind.HARDLINK:
            self._link(_join(directory, name), entry)
        else:
            self._place(_join(directory, name), entry)

    def records(self, *, told: bool = False) -> Iterator[BaselineRecord]:
        """Yield what is there in the order of `walk_key`, the root first.

        Args:
            told: Only what a layer has told: no directory that is there because something lies in it.
        """
        columns = "key, layer, kind, mode, uid, gid, size, mtime, link, sha256, xattrs"
        for key, layer, kind, mode, uid, gid, size, mtime, link, sha256, xattrs in self._sql.execute(
            f"SELECT {columns} FROM entry ORDER BY key"  # noqa: S608  no word of it is from outside
        ):
            if kind not in _OURS or (told and layer == _IMPLIED):
                continue
            yield BaselineRecord(
                entry=BaselineEntry(
                    path=key.replace(b"\0", b"/"),
                    kind=_OURS[kind],
                    mode=mode,
                    uid=uid,
                    gid=gid,
                    size=size,
                    mtime=mtime,
                    link=link,
                ),
                sha256=sha256,
                xattrs=_xattrs_from(xattrs) if xattrs else {},
            )

    def _directory(self, named: bytes, *, make: bool = True) -> bytes:
        """Return where a directory is that a layer calls by this name; make what is missing on the way."""
        known = self._known.get(named)
        if known is not None:
            return known
        here: list[bytes] = []
        ahead = named.split(b"/")[::-1]
        links = 0
        while ahead:
            name = ahead.pop()
            if name in {b"", b"."}:
                continue
            if name == b"..":
                del here[-1:]
                continue
            path = _join(b"/".join(here), name)
            kind, _, link = self._look(path)
            if kind == _SYMLINK:
                links += 1
                if links > _LINKS:
                    raise ImageInvalidError(f"A layer cannot be applied: links lead round at {path!r}.")
                if link.startswith(b"/"):
                    here = []
                ahead += link.split(b"/")[::-1]
                continue
            if kind is None and not make:
                raise ImageInvalidError(f"A layer cannot be applied: there is no directory {path!r}.")
            if kind is None:
                self._put(path, _implied(path), _IMPLIED)
            elif kind != _DIRECTORY:
                raise ImageInvalidError(f"A layer cannot be applied: {path!r} is no directory.")
            here.append(name)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        found = b"/".join(here)
        self._known[named] = found
        return found

    def _link(self, path: bytes, entry: LayerEntry) -> None:
        above, _, name = entry.link.rpartition(b"/")
        target = _join(self._directory(above, make=False), name)
        if target == path:
            raise ImageInvalidError(f"A layer cannot be applied: {path!r} is a link to itself.")
        kind, _, _ = self._look(target)
        if kind is None or kind == _DIRECTORY:
            raise ImageInvalidError(f"A layer cannot be applied: {path!r} is a link to {target!r}, which is no file.")
        self._make_room(path, TarKind.FILE)
        self._sql.execute(
            "INSERT OR REPLACE INTO entry SELECT ?, ?, kind, mode, uid, gid, size, mtime, link, sha256, xattrs"
            " FROM entry WHERE key = ?",
            (order_key(path), self._layer, order_key(target)),
        )

    def _place(self, path: bytes, entry: LayerEntry) -> None:
        self._make_room(path, entry.kind)
        self._put(path, entry, self._layer)

    def _make_room(self, path: bytes, kind: TarKind) -> None:
        """Let go of what is replaced: a directory stays where one comes, everything else goes with all below."""
        there, _, _ = self._look(path)
        if there is None or (there == _DIRECTORY and kind is TarKind.DIRECTORY):
            return
        if there in {_DIRECTORY, _SYMLINK}:
            self._known.clear()
        if there == _DIRECTORY:
            self._sql.execute(f"DELETE FROM entry WHERE {_BELOW}", _range(path))  # noqa: S608

    def _hide(self, path: bytes, *, itself: bool) -> None:
        """Let go of what lower layers have at and below a path; what this layer has told there stays, with its way."""
        self._known.clear()
        key = order_key(path)
        staying = self._sql.execute(
            f"SELECT key FROM entry WHERE (key = ? OR ({_BELOW})) AND layer = ?",  # noqa: S608
            (key, *_range(path), self._layer),
        ).fetchall()
        ways = {way for (one,) in staying for way in _ways(one, key)}
        self._sql.executemany("UPDATE entry SET layer = ? WHERE key = ?", [(self._layer, way) for way in ways])
        self._sql.execute(f"DELETE FROM entry WHERE {_BELOW} AND layer < ?", (*_range(path), self._layer))  # noqa: S608
        if itself and path:
            self._sql.execute("DELETE FROM entry WHERE key = ? AND layer < ?", (key, self._layer))

    def _look(self, path: bytes) -> tuple[int | None, int, bytes]:
        """Return kind, layer and link of what is there; no kind where nothing is."""
        found = self._sql.execute("SELECT kind, layer, link FROM entry WHERE key = ?", (order_key(path),)).fetchone()
        return (None, 0, b"") if found is None else found

    def _put(self, path: bytes, entry: LayerEntry, layer: int) -> None:
        self._sql.execute(
            "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                order_key(path),
                layer,
                _NUMBERS[entry.kind],
                entry.mode,
                entry.uid,
                entry.gid,
                entry.size,
                entry.mtime,
                entry.link,
                entry.sha256,
                _xattrs_to(entry.xattrs) if entry.xattrs else "",
            ),
        )


def _implied(path: bytes) -> LayerEntry:
    return LayerEntry(path=path, kind=TarKind.DIRECTORY, mode=0o755, uid=0, gid=0)


def _join(directory: bytes, name: bytes) -> bytes:
    path = directory + b"/" + name if directory else name
    if len(path) > PATH_BYTES:
        raise ImageInvalidError(f"A layer cannot be applied: a path with {len(path)} bytes.")
    return path


def _range(path: bytes) -> tuple[bytes, bytes]:
    """The keys of everything below a path lie between these two."""
    key = order_key(path)
    return (key + b"\0", key + b"\1") if path else (b"", b"\xff" * 5000)


def _ways(key: bytes, top: bytes) -> Iterator[bytes]:
    """The keys of the directories from one entry up to the top."""
    while len(key) > len(top) and b"\0" in key:
        key = key.rpartition(b"\0")[0]
        if len(key) >= len(top):
            yield key


def _xattrs_to(xattrs: dict[bytes, bytes]) -> str:
    return json.dumps({name.decode("latin-1"): value.decode("latin-1") for name, value in xattrs.items()})


def _xattrs_from(text: str) -> dict[bytes, bytes]:
    return {name.encode("latin-1"): value.encode("latin-1") for name, value in json.loads(text).items()}
