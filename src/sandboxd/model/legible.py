"""Texts that strangers wrote, made fit for a message of ours: bounded, on one line, without control characters."""

from __future__ import annotations


def legible(text: str, *, limit: int) -> str:
    """Return the end of a text, where programs say why they failed, as one line of at most `limit` characters.

    Lines are joined by `" / "`; what is no printable character (controls, escape sequences, directions of writing)
    becomes `?`.
    """
    lines = (
        " ".join("".join(sign if sign.isprintable() or sign == "\t" else "?" for sign in line).split())
        for line in text.splitlines()
    )
    joined = " / ".join(line for line in lines if line)
    return joined if len(joined) <= limit else f"…{joined[-(limit - 1) :]}"
