"""What sandboxes held and for how long: intervals of running compute and of kept storage."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.metering import ResourceKind, RunningState
from sandboxd.model.sandbox import Tier
from sandboxd.persistence.tables.base import Base, Moment, one_of


class UsageIntervalRow(Base):
    """One span in which nothing that is paid for changed. Written by triggers on `sandboxes` and `incarnations`."""

    __tablename__ = "usage_intervals"

    sandbox: Mapped[str] = mapped_column(ForeignKey("sandboxes.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    volume: Mapped[str] = mapped_column(primary_key=True)
    """`home` or `workspace`; empty for running compute."""
    number: Mapped[int] = mapped_column(primary_key=True)
    """1 for the first of its sandbox, kind and volume, then one more each time."""
    client: Mapped[str]
    freelancer: Mapped[str]
    tier: Mapped[str]
    state: Mapped[str]
    """ACTIVE or HIBERNATED; empty for storage."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    """Of the volume; 0 for running compute."""
    incarnation: Mapped[str | None]
    """Whose compute it is; none for storage."""
    opened_time: Mapped[Moment]
    last_seen_time: Mapped[Moment | None]
    """When the backend was last found to run that incarnation: where nothing else tells when it died."""
    closed_time: Mapped[Moment | None]
    close_reason: Mapped[str]

    __table_args__ = (
        one_of("kind", ResourceKind),
        one_of("tier", Tier),
        CheckConstraint(f"state IN ('', {', '.join(repr(state.value) for state in RunningState)})", name="state"),
        CheckConstraint("closed_time IS NULL OR closed_time >= opened_time", name="span"),
        Index(None, "client", "opened_time"),
        Index(
            "uq_usage_intervals_open",
            "sandbox",
            "kind",
            "volume",
            unique=True,
            postgresql_where=text("closed_time IS NULL"),
        ),
        Index("ix_usage_intervals_living", "incarnation", postgresql_where=text("closed_time IS NULL")),
    )
