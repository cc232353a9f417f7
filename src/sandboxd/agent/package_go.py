"""What the linker of Go writes into each program: the package and the version of its module.

A program is read in blocks and never mapped: one that is cut meanwhile would kill the agent by SIGBUS.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Final

from sandboxd.agent.package_files import Stamp, opened, stamp

PROGRAM_BYTES: Final = 256 << 20
"""Of a program, so much is looked through."""
TEXT_BYTES: Final = 1 << 20
"""Longest list of modules that is read."""
BLOCK_BYTES: Final = 1 << 20
_ELF: Final = b"\x7fELF"
_MAGIC: Final = b"\xff Go buildinf:"
_HEADER_BYTES: Final = 32
_ALIGNMENT: Final = 16
_KEPT: Final = 4096
"""Programs that are remembered."""
_INLINE: Final = 2
"""Flag: version and modules follow the header, as since Go 1.18."""


def find_module(program: Path) -> tuple[str, str]:
    """Tell package path and module version; empty where there are none. A program that stays as it is is read once.

    Raises:
        IncompleteDatabaseError: It cannot be read.
    """
    return _module_of(stamp(program))


@lru_cache(maxsize=_KEPT)
def _module_of(found: Stamp) -> tuple[str, str]:
    with opened(Path(found[0])) as descriptor:
        if descriptor < 0 or os.pread(descriptor, len(_ELF), 0) != _ELF:
            return "", ""
        at = 0
        while at < PROGRAM_BYTES and (block := os.pread(descriptor, BLOCK_BYTES + _HEADER_BYTES, at)):
            begin = _header(block)
            if begin >= 0:
                return parse_build_info(os.pread(descriptor, 2 * TEXT_BYTES, at + begin))
            at += BLOCK_BYTES
    return "", ""


def parse_build_info(data: bytes) -> tuple[str, str]:
    """Read package path and module version from the header on.

    The header has 32 bytes; then come the version of Go and the modules, each behind its length.
    """
    end, _ = _text(data, _HEADER_BYTES)
    _, modules = _text(data, end)
    # 16 bytes of mark stand before and behind.
    rows = [line.split("\t") for line in modules[16:-16].decode("utf-8", "replace").splitlines()]
    paths = [row[1] for row in rows if row[0] == "path" and len(row) > 1]
    versions = [row[2] for row in rows if row[0] == "mod" and len(row) > 2]
    return (paths[0], versions[0]) if paths and versions else ("", "")


def _header(block: bytes) -> int:
    """Find the header: at a multiple of 16, whole, and of the kind that is understood."""
    at = block.find(_MAGIC)
    while at >= 0 and (at % _ALIGNMENT or at + _HEADER_BYTES > len(block) or not block[at + 15] & _INLINE):
        at = block.find(_MAGIC, at + 1)
    return at


def _text(data: bytes, at: int) -> tuple[int, bytes]:
    length = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at, length, shift = at + 1, length | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return at + length, data[at : at + length]
    return len(data), b""
