"""Text that fits: cleaned of what cannot be stored or sent, cut or split to a number of UTF-8 bytes. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

_UNFIT = re.compile("[\x00\ud800-\udfff]")
"""Lone surrogates cannot be UTF-8, and PostgreSQL has no NUL in texts."""


def clean(text: str) -> str:
    """Replace what no string of protobuf or PostgreSQL can hold by U+FFFD."""
    return _UNFIT.sub("\ufffd", text) if _UNFIT.search(text) else text


def cut(text: str, limit: int) -> tuple[str, bool]:
    """The longest beginning of a clean text that fits, and whether something was cut."""
    if len(text) * 4 <= limit:
        return text, False
    data = text[: limit + 1].encode()
    if len(data) <= limit:
        return text, False
    return data[:limit].decode("utf-8", "ignore"), True


def shorten(text: str, limit: int) -> str:
    """The cleaned text, or its beginning with a remark about what is missing."""
    kept, was_cut = cut(clean(text), limit)
    return f"{kept} … [{len(text) - len(kept)} characters cut]" if was_cut else kept


def pieces(text: str, limit: int) -> Iterator[str]:
    """The cleaned text in pieces that fit each; one empty piece for an empty text."""
    text = clean(text)
    at = 0
    while True:
        kept, was_cut = cut(text[at : at + limit + 1], limit)
        yield kept
        if not was_cut:
            return
        at += len(kept)
