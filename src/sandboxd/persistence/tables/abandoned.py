"""Since when things are seen abandoned."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, Float
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.persistence.tables.base import Base, Moment


class AbandonedSightingRow(Base):
    """One thing that was abandoned at the last look at its place."""

    __tablename__ = "abandoned_sightings"

    place: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    """With its kind before it."""
    first_time: Mapped[Moment]
    last_time: Mapped[Moment]
    looks: Mapped[int]
    seen_seconds: Mapped[float] = mapped_column(Float)

    __table_args__ = (CheckConstraint("looks > 0 AND seen_seconds >= 0", name="looks"),)


class AbandonedLookRow(Base):
    """What is known of one place that may have abandoned things."""

    __tablename__ = "abandoned_looks"

    place: Mapped[str] = mapped_column(primary_key=True)
    tried_time: Mapped[Moment]
    look_time: Mapped[Moment | None]
    things: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)  # Any: JSON
