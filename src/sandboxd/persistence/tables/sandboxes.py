"""Sandboxes, their incarnations, and the requests and operations on them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.sandbox import ApprovalMode, SandboxState, Tier
from sandboxd.persistence.tables.base import Base, Moment, SafeJson, SafeText, one_of


class SandboxRow(Base):
    """A sandbox: `model.sandbox.Sandbox`."""

    __tablename__ = "sandboxes"

    id: Mapped[str] = mapped_column(primary_key=True)
    client: Mapped[str]
    freelancer: Mapped[str]
    display_name: Mapped[str] = mapped_column(SafeText())
    labels: Mapped[dict[str, str]] = mapped_column(SafeJson)
    tier: Mapped[str]
    model: Mapped[str] = mapped_column(SafeText())
    approval_mode: Mapped[str]
    state: Mapped[str]
    state_reason: Mapped[str] = mapped_column(SafeText())
    incarnation: Mapped[str | None]
    """Written before the incarnation's own row within one transaction, so it is no foreign key."""
    incarnations: Mapped[int]
    create_time: Mapped[Moment]
    update_time: Mapped[Moment]
    last_use_time: Mapped[Moment]
    terminate_time: Mapped[Moment | None]
    version: Mapped[int] = mapped_column(BigInteger)
    state_time: Mapped[Moment | None]
    lifecycle: Mapped[dict[str, Any]] = mapped_column(SafeJson, server_default=text("'{}'"))
    keep_awake_until: Mapped[Moment | None]
    look_time: Mapped[Moment] = mapped_column(server_default=text("now()"))
    """When the sweep looks at it next; every change of the sandbox asks for a look at once."""
    restoring: Mapped[dict[str, Any] | None] = mapped_column(SafeJson)
    """What is brought back, while it is RESTORING."""
    released: Mapped[dict[str, Any] | None] = mapped_column(SafeJson)
    """Which backup set has what its volumes had, and since when they are gone."""
    image_generation: Mapped[str | None]
    """No foreign key: generations refer to their sandbox."""
    image_number: Mapped[int | None]
    image_reference: Mapped[str | None]
    dirty_since: Mapped[Moment | None]
    """First change of its root file system that no commit has, as `sandbox_packages` says."""
    unsaved_packages: Mapped[int] = mapped_column(server_default=text("0"))

    __table_args__ = (
        ForeignKeyConstraint(["client", "freelancer"], ["freelancers.client", "freelancers.id"]),
        one_of("tier", Tier),
        one_of("approval_mode", ApprovalMode),
        one_of("state", SandboxState),
        CheckConstraint("version > 0", name="version"),
        CheckConstraint(
            "(image_generation IS NULL) = (image_number IS NULL)"
            " AND (image_generation IS NULL) = (image_reference IS NULL)",
            name="image",
        ),
        CheckConstraint("jsonb_typeof(labels) = 'object'", name="labels"),
        Index(None, "client", "create_time", "id"),
        Index(None, "client", "last_use_time", "id"),
        Index(None, "client", "freelancer"),
        Index(None, "state", "id"),
        Index(
            "ix_sandboxes_look_time",
            "look_time",
            "id",
            postgresql_where=text("state IN ('ACTIVE', 'HIBERNATED', 'STOPPED', 'PAUSED')"),
        ),
        Index("ix_sandboxes_dirty_since", "dirty_since", postgresql_where=text("dirty_since IS NOT NULL")),
        Index("ix_sandboxes_labels", "labels", postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}),
    )


class IncarnationRow(Base):
    """One life of a sandbox's compute."""

    __tablename__ = "incarnations"

    id: Mapped[str] = mapped_column(primary_key=True)
    sandbox: Mapped[str] = mapped_column(ForeignKey("sandboxes.id"))
    number: Mapped[int]
    host: Mapped[str | None]
    port: Mapped[int | None]
    server_name: Mapped[str | None]
    start_time: Mapped[Moment]
    ready_time: Mapped[Moment | None]
    end_time: Mapped[Moment | None]
    end_reason: Mapped[str] = mapped_column(SafeText())

    __table_args__ = (
        CheckConstraint("number > 0", name="number"),
        CheckConstraint("(host IS NULL) = (port IS NULL) AND (host IS NULL) = (server_name IS NULL)", name="endpoint"),
        Index("uq_incarnations_number", "sandbox", "number", unique=True),
        Index("uq_incarnations_living", "sandbox", unique=True, postgresql_where=text("end_time IS NULL")),
        Index("ix_incarnations_living", "id", postgresql_where=text("end_time IS NULL")),
    )


class RequestRow(Base):
    """A mutating request, remembered by its id so that it is done once."""

    __tablename__ = "request_ids"

    client: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(primary_key=True)
    method: Mapped[str]
    subject: Mapped[str] = mapped_column(SafeText())
    body_hash: Mapped[bytes]
    sandbox: Mapped[str]
    """No foreign key: the request of a Create is claimed before its sandbox is there."""
    outcome: Mapped[dict[str, Any] | None] = mapped_column(SafeJson)
    create_time: Mapped[Moment]
    expire_time: Mapped[Moment | None]

    __table_args__ = (
        Index("ix_request_ids_in_progress", "sandbox", postgresql_where=text("outcome IS NULL")),
        Index("ix_request_ids_expire_time", "expire_time", postgresql_where=text("expire_time IS NOT NULL")),
    )


class OperationRow(Base):
    """Who works on a sandbox now, and until when it may be taken for alive."""

    __tablename__ = "operations"

    sandbox: Mapped[str] = mapped_column(primary_key=True)
    """No foreign key: an operation may begin before its sandbox's row is committed."""
    id: Mapped[str]
    replica: Mapped[str]
    lease_until: Mapped[Moment]

    __table_args__ = (Index(None, "id"),)
