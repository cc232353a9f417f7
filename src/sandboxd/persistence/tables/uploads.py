"""Uploads to the registry that are open."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.persistence.tables.base import Base, Moment


class ImageUploadRow(Base):
    """One upload session that a push of ours has opened and nobody has seen closed."""

    __tablename__ = "image_uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    repository: Mapped[str]
    location: Mapped[str]
    generation: Mapped[str]
    """Of which commit; no reference: the row must not keep a generation."""
    begin_time: Mapped[Moment]
    update_time: Mapped[Moment]
    sent_bytes: Mapped[int] = mapped_column(BigInteger)
    total_bytes: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        CheckConstraint("sent_bytes >= 0 AND total_bytes >= 0", name="bytes"),
        Index(None, "update_time"),
    )
