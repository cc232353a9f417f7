"""Whether an object already says what we want it to say. Pure.

The API server adds defaults and writes quantities in its own form, so a wanted object is compared with what is there
field by field: what we do not set is nobody's difference. A map that is ours alone is wanted `Whole`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sandboxd.model.quantity import parse_quantity


class Whole(dict[str, Any]):
    """A map that is wanted as it stands: whatever else is found in it is wanted no more."""


def says(found: Any, wanted: Any) -> bool:  # Any: JSON
    """Tell whether everything that is wanted is found. Lists must have the same length and order."""
    match wanted:
        case Whole() if isinstance(found, Mapping) and found.keys() - wanted.keys():
            return False
        case Mapping():
            return isinstance(found, Mapping) and all(says(found.get(key), value) for key, value in wanted.items())
        case str():
            return isinstance(found, str) and (found == wanted or same_quantity(found, wanted))
        case Sequence():
            return (
                isinstance(found, Sequence)
                and not isinstance(found, str)
                and len(found) == len(wanted)
                and all(says(one, other) for one, other in zip(found, wanted, strict=True))
            )
        case None:
            return found is None
        case _:
            # An absent number or truth is the default of Go's JSON, which leaves it out.
            return bool(found == wanted or (found is None and not wanted))


def merging(found: Any, wanted: Any) -> Any:
    """Return what is wanted as a JSON merge patch of what is found: what a whole map has no more is named as gone.

    Lists need no such care: a merge replaces them.
    """
    if not isinstance(wanted, Mapping):
        return wanted
    there = found if isinstance(found, Mapping) else {}
    made = {key: merging(there.get(key), value) for key, value in wanted.items()}
    return {**dict.fromkeys(there), **made} if isinstance(wanted, Whole) else made


def same_quantity(one: str, other: str) -> bool:
    """Tell whether two texts are quantities of the same size."""
    try:
        return parse_quantity(one) == parse_quantity(other)
    except ValueError:
        return False
