"""Backup sets."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.backup import BackupMethod, BackupSetStatus, BackupTrigger, Consistency
from sandboxd.persistence.tables.base import Base, Moment, SafeJson, one_of

UNFINISHED: Final = "status IN ('creating', 'deleting')"


class BackupSetRow(Base):
    """A backup set: `model.backup.BackupSet`."""

    __tablename__ = "backup_sets"

    id: Mapped[str] = mapped_column(primary_key=True)
    sandbox: Mapped[str] = mapped_column(ForeignKey("sandboxes.id"))
    client: Mapped[str]
    freelancer: Mapped[str]
    method: Mapped[str] = mapped_column(server_default=text("'files'"))
    take_time: Mapped[Moment]
    image: Mapped[str]
    volumes: Mapped[list[Any]] = mapped_column(SafeJson)
    spec: Mapped[dict[str, Any]] = mapped_column(SafeJson)
    spec_version: Mapped[int]
    consistency: Mapped[str]
    status: Mapped[str]
    locked_until: Mapped[Moment | None]
    trigger: Mapped[str] = mapped_column(server_default=text("'request'"))
    pinned_time: Mapped[Moment | None]
    checksum: Mapped[str] = mapped_column(server_default=text("''"))
    freeze: Mapped[dict[str, Any] | None] = mapped_column(SafeJson)
    cancelled: Mapped[bool] = mapped_column(server_default=text("false"))
    attempts: Mapped[int] = mapped_column(server_default=text("1"))
    progress: Mapped[dict[str, Any] | None] = mapped_column(SafeJson)
    failure: Mapped[str]
    failure_message: Mapped[str] = mapped_column(server_default=text("''"))
    failure_kind: Mapped[str | None]
    proof: Mapped[dict[str, Any] | None] = mapped_column(SafeJson)
    create_time: Mapped[Moment]
    update_time: Mapped[Moment]
    version: Mapped[int]

    __table_args__ = (
        ForeignKeyConstraint(["client", "freelancer"], ["freelancers.client", "freelancers.id"]),
        one_of("method", BackupMethod),
        one_of("consistency", Consistency),
        one_of("status", BackupSetStatus),
        one_of("trigger", BackupTrigger),
        CheckConstraint("attempts > 0", name="attempts"),
        CheckConstraint("spec_version > 0", name="spec_version"),
        CheckConstraint("status <> 'complete' OR jsonb_array_length(volumes) = 2", name="volumes"),
        CheckConstraint("(status = 'deleted') = (proof IS NOT NULL)", name="proof"),
        Index("uq_backup_sets_creating", "sandbox", unique=True, postgresql_where=text("status = 'creating'")),
        Index(None, "sandbox", "take_time"),
        Index(None, "client", "take_time", "id"),
        Index("ix_backup_sets_image", "image", postgresql_where=text("image <> ''")),
        Index("ix_backup_sets_unfinished", "id", postgresql_where=text(UNFINISHED)),
        Index("ix_backup_sets_deleted", "update_time", postgresql_where=text("status = 'deleted'")),
    )
