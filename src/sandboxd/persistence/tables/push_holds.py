"""Who holds pushes to the registry, and which pushes are in flight."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, SmallInteger
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.persistence.tables.base import Base, Moment, SafeText


class PushHoldRow(Base):
    """The one hold: `model.push_hold.PushHold`. The row is always there: who begins a push locks it."""

    __tablename__ = "push_hold"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    holder: Mapped[str | None] = mapped_column(SafeText())
    """Null where nobody holds."""
    claim: Mapped[str | None]
    """Of the call that took or renewed it last."""
    since_time: Mapped[Moment | None]
    until_time: Mapped[Moment | None]
    held_time: Mapped[Moment | None]

    __table_args__ = (
        CheckConstraint("id = 1", name="one"),
        CheckConstraint(
            "(holder IS NULL) = (claim IS NULL) AND (holder IS NULL) = (since_time IS NULL) "
            "AND (holder IS NULL) = (until_time IS NULL)",
            name="held",
        ),
    )


class ImagePushRow(Base):
    """A push that may write to the registry until its time is over."""

    __tablename__ = "image_pushes"

    id: Mapped[str] = mapped_column(primary_key=True)
    until_time: Mapped[Moment]
