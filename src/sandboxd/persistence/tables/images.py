"""Generations of sandboxes' images."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.image import CommitPhase, CommitTrigger, GenerationStatus
from sandboxd.model.replay import ReplayPolicy
from sandboxd.persistence.tables.base import Base, Moment, SafeJson, one_of

IN_FLIGHT: Final = "status IN ('building', 'pushed', 'verified')"


class ImageGenerationRow(Base):
    """A generation: `model.image.Generation`."""

    __tablename__ = "image_generations"

    id: Mapped[str] = mapped_column(primary_key=True)
    sandbox: Mapped[str] = mapped_column(ForeignKey("sandboxes.id"))
    client: Mapped[str]
    freelancer: Mapped[str]
    number: Mapped[int]
    incarnation: Mapped[str]
    trigger: Mapped[str]
    replay_policy: Mapped[str | None]
    dry_run: Mapped[bool]
    request_id: Mapped[str | None]
    registry_host: Mapped[str]
    repository: Mapped[str]
    base: Mapped[str]
    parent: Mapped[str | None]
    """No foreign key: an erasure removes rows in any order."""
    given_up: Mapped[str | None]
    status: Mapped[str]
    phase: Mapped[str]
    progress_entries: Mapped[int] = mapped_column(BigInteger)
    progress_bytes: Mapped[int] = mapped_column(BigInteger)
    progress_total_bytes: Mapped[int] = mapped_column(BigInteger)
    cancelled: Mapped[bool]
    digest: Mapped[str | None]
    """Of the manifest; not null where it is built, empty of a dry run."""
    layer_digest: Mapped[str]
    diff_id: Mapped[str]
    raw_bytes: Mapped[int] = mapped_column(BigInteger)
    compressed_bytes: Mapped[int] = mapped_column(BigInteger)
    image_bytes: Mapped[int] = mapped_column(BigInteger)
    layers: Mapped[int]
    entries: Mapped[int]
    largest: Mapped[list[Any]] = mapped_column(SafeJson)
    left_out: Mapped[list[Any]] = mapped_column(SafeJson)
    unchanged: Mapped[bool]
    seconds: Mapped[dict[str, float]] = mapped_column(JSONB(none_as_null=True))
    failure: Mapped[dict[str, Any] | None] = mapped_column(SafeJson)
    attempts: Mapped[int]
    create_time: Mapped[Moment]
    update_time: Mapped[Moment]
    capture_time: Mapped[Moment | None]
    push_time: Mapped[Moment | None]
    verify_time: Mapped[Moment | None]
    activate_time: Mapped[Moment | None]
    told_time: Mapped[Moment | None]
    end_time: Mapped[Moment | None]
    version: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        ForeignKeyConstraint(["client", "freelancer"], ["freelancers.client", "freelancers.id"]),
        one_of("trigger", CommitTrigger),
        one_of("replay_policy", ReplayPolicy, optional=True),
        one_of("status", GenerationStatus),
        one_of("phase", CommitPhase),
        CheckConstraint("number BETWEEN 1 AND 999999", name="number"),
        CheckConstraint("failure IS NULL OR status IN ('failed', 'superseded', 'deleting', 'deleted')", name="failure"),
        CheckConstraint(
            "status IN ('building', 'failed', 'discarded') OR digest LIKE 'sha256:%' AND registry_host <> ''",
            name="digest",
        ),
        CheckConstraint(f"({IN_FLIGHT}) = (end_time IS NULL)", name="end"),
        Index("uq_image_generations_number", "client", "freelancer", "number", unique=True),
        Index("uq_image_generations_in_flight", "sandbox", unique=True, postgresql_where=text(IN_FLIGHT)),
        Index("uq_image_generations_active", "sandbox", unique=True, postgresql_where=text("status = 'active'")),
        Index(
            "uq_image_generations_request",
            "client",
            "request_id",
            unique=True,
            postgresql_where=text("request_id IS NOT NULL"),
        ),
        Index(None, "sandbox", "number"),
        Index("ix_image_generations_unfinished", "id", postgresql_where=text(IN_FLIGHT)),
        Index(
            "ix_image_generations_untold",
            "id",
            postgresql_where=text("status = 'active' AND told_time IS NULL"),
        ),
        Index(None, "digest"),
        Index(
            "ix_image_generations_forgettable",
            "end_time",
            postgresql_where=text("status IN ('failed', 'discarded', 'deleted')"),
        ),
    )


class ImageSightingRow(Base):
    """What was seen of a digest outside the rows of generations; gone with the image."""

    __tablename__ = "image_sightings"

    repository: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    use_time: Mapped[Moment | None]
    """When something named it last."""
    orphan_time: Mapped[Moment | None]
    """Since when the registry has it and no row knows of it."""


class ImageSbomRow(Base):
    """The packages of a generation, and where the registry has their list: `model.image_sbom.ImageSbom`."""

    __tablename__ = "image_sboms"

    generation: Mapped[str] = mapped_column(ForeignKey("image_generations.id", ondelete="CASCADE"), primary_key=True)
    packages: Mapped[bytes]
    """As `package_rows.pack` packs them."""
    complete: Mapped[bool]
    manifest_digest: Mapped[str | None]
    """Null until it is attached."""
    document_digest: Mapped[str | None]
    document_bytes: Mapped[int | None] = mapped_column(BigInteger)
    attach_time: Mapped[Moment | None]
    attempts: Mapped[int]
    failure: Mapped[str]
    next_time: Mapped[Moment]

    __table_args__ = (
        CheckConstraint(
            "(manifest_digest IS NULL) = (attach_time IS NULL) "
            "AND (manifest_digest IS NULL) = (document_digest IS NULL) "
            "AND (manifest_digest IS NULL) = (document_bytes IS NULL)",
            name="attached",
        ),
        Index("ix_image_sboms_due", "next_time", postgresql_where=text("attach_time IS NULL")),
    )
