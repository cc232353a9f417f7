"""What all tables share: names of constraints, the types of columns, the check of a closed set of words."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Annotated, Any, Final

from sqlalchemy import CheckConstraint, DateTime, Dialect, MetaData, Table, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import BYTEA, JSONB
from sqlalchemy.orm import DeclarativeBase
from typing_extensions import override

from sandboxd.persistence.escape import escape, unescape

NAMES: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class SafeText(TypeDecorator[str]):
    """Text from outside: what PostgreSQL cannot hold is escaped on the way in and restored on the way out."""

    impl = Text
    cache_ok = True

    @override
    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else escape(value)

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else unescape(value)

    @override
    def coerce_compared_value(self, op: Any, value: Any) -> Any:  # Any: SQLAlchemy's own signature
        return self


SafeJson: Final = JSONB(none_as_null=True)
"""JSON from outside: the engine's JSON codec (`engine.py`) escapes and restores it the same way."""

Moment = Annotated[datetime, "a moment in UTC"]
"""A `timestamptz`."""


class Base(DeclarativeBase):
    """Root of all tables."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy reads it from the class
        str: Text(),
        bytes: BYTEA(),
        datetime: DateTime(timezone=True),
        Moment: DateTime(timezone=True),
    }


def one_of(column: str, words: type[enum.Enum], *, optional: bool = False) -> CheckConstraint:
    """Check that a column holds one of an enum's values."""
    listed = ", ".join(f"'{word.value}'" for word in words)
    text = f"{column} IN ({listed})"
    return CheckConstraint(f"{column} IS NULL OR {text}" if optional else text, name=column)


def table(of: type[Base]) -> Table:
    """The Core table behind a class."""
    made = of.__table__
    if not isinstance(made, Table):
        raise TypeError(of)
    return made
