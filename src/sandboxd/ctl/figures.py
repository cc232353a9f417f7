"""Figures as people read them: money, tokens, spans and moments."""

from __future__ import annotations

from datetime import UTC, datetime

_SIGNS = {"USD": "$", "EUR": "€", "GBP": "£"}


def money(micros: int, currency: str) -> str:
    """Write an amount: cents for large ones, more digits for the small amounts of single calls."""
    amount = abs(micros) / 1_000_000
    digits = 2 if amount >= 1 or micros == 0 else 4 if amount >= 0.01 else 6
    sign = _SIGNS.get(currency, "")
    text = f"{sign}{amount:,.{digits}f}" if sign else f"{amount:,.{digits}f} {currency}"
    return f"-{text}" if micros < 0 else text


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number with its noun."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def amount(size: int) -> str:
    """Write an amount of bytes, in powers of ten as tiers are."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def span(seconds: float) -> str:
    """Write a span with the two units that matter."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def ago(moment: datetime, *, now: datetime | None = None) -> str:
    """Write how long ago a moment was."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return "just now" if seconds < 2 else f"{_coarse(seconds)} ago"


def _coarse(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
