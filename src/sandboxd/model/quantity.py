"""Kubernetes quantities (`500m`, `2G`, `1Gi`) as exact numbers, to compare and to scale them."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Final

_UNITS: Final = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal("1e3"),
    "M": Decimal("1e6"),
    "G": Decimal("1e9"),
    "T": Decimal("1e12"),
    "P": Decimal("1e15"),
    "E": Decimal("1e18"),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}
_QUANTITY: Final = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:([eE][+-]?[0-9]+)|([numkMGTPE]|[KMGTPE]i)?)")


def parse_quantity(text: str) -> Decimal:
    """Return the number that a quantity stands for.

    Raises:
        ValueError: It is none.
    """
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no quantity")
    number, exponent, unit = found.groups()
    return Decimal(number + (exponent or "")) * _UNITS[unit or ""]


def scale_cpu(text: str, factor: str) -> str:
    """Return a share of a CPU quantity in whole millicores, at least one."""
    return f"{max(1, _up(parse_quantity(text) * parse_quantity(factor) * 1000))}m"


def scale_bytes(text: str, factor: str) -> str:
    """Return a share of a quantity of bytes, in whole bytes, at least one."""
    return str(max(1, _up(parse_quantity(text) * parse_quantity(factor))))


def _up(number: Decimal) -> int:
    return int(number.to_integral_value(rounding=ROUND_CEILING))
