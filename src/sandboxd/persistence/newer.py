"""Rows that a newer version has written while an update rolls: what this one cannot read is left to the newer one.

The rule for whoever adds a word to a closed set (a state, a trigger): docs/replicas.md. Nothing is guessed: a word that
is not known is no other word, since whoever takes it for one would work on what it does not understand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import structlog

from sandboxd.model.errors import NewerVersionError
from sandboxd.persistence.sandbox_rows import Row

_Entity = TypeVar("_Entity")

log = structlog.get_logger(__name__)


def read_one(row: Row, read: Callable[[Row], _Entity]) -> _Entity:
    """Read a row that somebody wants.

    Raises:
        NewerVersionError: It has a word that this version does not know.
    """
    try:
        return read(row)
    except ValueError as error:
        log.warning("row.of_a_newer_version", row=row["id"], error=str(error))
        raise NewerVersionError(row["id"]) from error


def read_many(rows: Iterable[Row], read: Callable[[Row], _Entity]) -> list[_Entity]:
    """Read those of many rows that this version knows; the others are left to newer replicas."""
    found: list[_Entity] = []
    for row in rows:
        try:
            found.append(read(row))
        except ValueError as error:
            log.warning("row.of_a_newer_version", row=row["id"], error=str(error))
    return found
