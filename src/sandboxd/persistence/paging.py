"""Page tokens: where a list goes on, opaque to the caller, and bound to the list that it was made for."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from datetime import UTC, datetime
from typing import Final

from sandboxd.model.errors import FieldViolation, InvalidRequestError

_VERSION: Final = 1


def make_token(moment: datetime, item: str, *, of: str) -> str:
    """Write the place after an item of a list ordered by a moment and the id.

    Args:
        moment: The item's value of the column that the list is ordered by.
        item: The item's id.
        of: Everything that makes the list this one: its filter and its order.
    """
    place = [_VERSION, _mark(of), moment.astimezone(UTC).isoformat(), item]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def read_token(token: str, *, of: str) -> tuple[datetime, str]:
    """Read a place.

    Raises:
        InvalidRequestError: The token is not one of this list.
    """
    try:
        version, mark, moment, item = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        place = datetime.fromisoformat(moment)
    except (ValueError, TypeError, binascii.Error) as error:
        raise _refused() from error
    if (version, mark) != (_VERSION, _mark(of)) or place.tzinfo is None or not isinstance(item, str):
        raise _refused()
    return place, item


def _mark(of: str) -> str:
    return hashlib.sha256(of.encode(errors="surrogatepass")).hexdigest()[:16]


def _refused() -> InvalidRequestError:
    rule = "must be the next_page_token of a page of the same list, with the same filter and order"
    return InvalidRequestError(
        "The page token does not belong to this list. Begin again without one.",
        violations=[FieldViolation(field="page_token", description=rule)],
    )
