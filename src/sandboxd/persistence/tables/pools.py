"""Warm pools and their members."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.pool import EndReason, MemberState
from sandboxd.model.sandbox import Tier
from sandboxd.persistence.tables.base import Base, Moment, one_of


class PoolRow(Base):
    """A pool: `model.pool.Pool`."""

    __tablename__ = "pools"

    id: Mapped[str] = mapped_column(primary_key=True)
    client: Mapped[str] = mapped_column(ForeignKey("clients.id"))
    template: Mapped[str]
    tier: Mapped[str]
    min_size: Mapped[int]
    target_size: Mapped[int]
    max_size: Mapped[int]
    idle_seconds: Mapped[int] = mapped_column(BigInteger)
    age_seconds: Mapped[int] = mapped_column(BigInteger)
    deleting: Mapped[bool]
    create_time: Mapped[Moment]
    update_time: Mapped[Moment]
    use_time: Mapped[Moment]
    version: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        one_of("tier", Tier),
        CheckConstraint("0 <= min_size AND min_size <= target_size AND target_size <= max_size", name="size"),
        Index("uq_pools_target", "client", "template", "tier", unique=True),
    )


class PoolMemberRow(Base):
    """A member: `model.pool.Member`."""

    __tablename__ = "pool_members"

    sandbox: Mapped[str] = mapped_column(primary_key=True)
    """No foreign key: it is no sandbox of anybody's until it is claimed."""
    incarnation: Mapped[str]
    pool: Mapped[str] = mapped_column(ForeignKey("pools.id"))
    client: Mapped[str]
    tier: Mapped[str]
    state: Mapped[str]
    host: Mapped[str | None]
    port: Mapped[int | None]
    server_name: Mapped[str | None]
    recipe: Mapped[str]
    replica: Mapped[str]
    start_time: Mapped[Moment]
    ready_time: Mapped[Moment | None]
    end_reason: Mapped[str | None]

    __table_args__ = (
        one_of("tier", Tier),
        one_of("state", MemberState),
        one_of("end_reason", EndReason, optional=True),
        CheckConstraint("(host IS NULL) = (port IS NULL) AND (host IS NULL) = (server_name IS NULL)", name="endpoint"),
        CheckConstraint("state <> 'READY' OR host IS NOT NULL", name="ready"),
        Index(None, "pool", "state"),
        Index("ix_pool_members_ready", "pool", "replica", "ready_time", postgresql_where=text("state = 'READY'")),
    )
