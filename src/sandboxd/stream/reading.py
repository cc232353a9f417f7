"""Reading values out of JSON that somebody else wrote: the value where it has the right type, a neutral one otherwise.

Pure; nothing here raises. `Any` is JSON's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text(value: Mapping[str, Any], key: str) -> str:
    """The string under a key; empty where there is none."""
    found = value.get(key)
    return found if isinstance(found, str) else ""


def number(value: Mapping[str, Any], key: str) -> int:
    """The integer under a key; 0 where there is none."""
    found = value.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def flag(value: Mapping[str, Any], key: str) -> bool:
    """Tell whether the key holds `true`."""
    return value.get(key) is True


def obj(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; empty where there is none."""
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def objects(value: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of the list under a key; other members are left out."""
    found = value.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def texts(value: Mapping[str, Any], key: str) -> list[str]:
    """The strings of the list under a key; other members are left out."""
    found = value.get(key)
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []
