"""The replicas of `serve` that share this database."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.persistence.tables.base import Base, Moment


class ReplicaRow(Base):
    """One life of a replica. True only while the advisory lock of its id is held; the rest is swept out."""

    __tablename__ = "replicas"

    id: Mapped[str] = mapped_column(primary_key=True)
    address: Mapped[str]
    """Where other replicas reach it, `host:port`."""
    start_time: Mapped[Moment]
    draining: Mapped[bool] = mapped_column(server_default=text("false"))
