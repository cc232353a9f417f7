"""Access lists of files (POSIX.1e), as text: the kernel keeps them as attributes, archives have them in words."""

from __future__ import annotations

import struct
from typing import Final

ARCHIVED: Final = {"SCHILY.acl.access": "system.posix_acl_access", "SCHILY.acl.default": "system.posix_acl_default"}
"""The attribute that each header of an archive stands for."""
_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_TAGS: Final = {0x01: "user", 0x02: "user", 0x04: "group", 0x08: "group", 0x10: "mask", 0x20: "other"}
_NAMED: Final = frozenset({0x02, 0x08})
"""Tags of entries that are for one user or group."""


def access_list_text(value: bytes) -> bytes | None:
    """Say an attribute's access list in the long form with numbers, a line for each entry; None where it is none."""
    head, entries = value[: _HEADER.size], value[_HEADER.size :]
    if len(head) < _HEADER.size or len(entries) % _ENTRY.size or _HEADER.unpack(head)[0] != _VERSION:
        return None
    lines = list[str]()
    for tag, may, who in _ENTRY.iter_unpack(entries):
        if tag not in _TAGS:
            return None
        allowed = "".join(letter if may & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
        lines.append(f"{_TAGS[tag]}:{who if tag in _NAMED else ''}:{allowed}\n")
    return "".join(lines).encode()
