"""What sources, tags and snapshots may be called: all of it becomes words of a command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from sandboxd.model.backup import SnapshotId
from sandboxd.model.backup_errors import BackupSnapshotNotFoundError
from sandboxd.model.errors import InvalidRequestError

_LETTERS: Final = re.compile(r"[A-Za-z0-9_./@-]{1,200}")
_ID: Final = re.compile(r"[0-9a-f]{64}")


def check_words(source: str, tags: Mapping[str, str]) -> None:
    """Raise InvalidRequestError where a source, or a name or value of a tag, has other letters."""
    for word in (source, *tags, *tags.values()):
        if _LETTERS.fullmatch(word) is None:
            raise InvalidRequestError(f"{word!r} is no source, name or value of a tag: a-z A-Z 0-9 _ . / @ -")


def check_ids(snapshots: Sequence[SnapshotId]) -> None:
    """Raise BackupSnapshotNotFoundError where one of these can be no snapshot."""
    for snapshot in snapshots:
        if _ID.fullmatch(snapshot) is None:
            raise BackupSnapshotNotFoundError(f"{snapshot!r} is no snapshot.", snapshot=snapshot)
