"""Restore drills."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.drill import DrillStatus, DrillTrigger
from sandboxd.persistence.tables.base import Base, Moment, SafeJson, one_of


class RestoreDrillRow(Base):
    """A drill: `model.drill.Drill`. It outlives its set, so it refers to none."""

    __tablename__ = "restore_drills"

    id: Mapped[str] = mapped_column(primary_key=True)
    backup: Mapped[str]
    sandbox: Mapped[str]
    client: Mapped[str]
    freelancer: Mapped[str]
    trigger: Mapped[str]
    request_id: Mapped[str | None]
    status: Mapped[str]
    cancelled: Mapped[bool]
    attempts: Mapped[int]
    image: Mapped[str]
    volumes: Mapped[list[Any]] = mapped_column(SafeJson)
    seconds: Mapped[dict[str, float]] = mapped_column(JSONB(none_as_null=True))
    failure: Mapped[str]
    failure_message: Mapped[str]
    create_time: Mapped[Moment]
    update_time: Mapped[Moment]
    end_time: Mapped[Moment | None]
    version: Mapped[int]

    __table_args__ = (
        one_of("trigger", DrillTrigger),
        one_of("status", DrillStatus),
        CheckConstraint("(status = 'running') = (end_time IS NULL)", name="end"),
        Index("uq_restore_drills_running", "status", unique=True, postgresql_where=text("status = 'running'")),
        Index("uq_restore_drills_request", "request_id", unique=True, postgresql_where=text("request_id IS NOT NULL")),
        Index(None, "create_time", "id"),
        Index(None, "client", "create_time", "id"),
        Index(None, "sandbox", "create_time"),
    )
