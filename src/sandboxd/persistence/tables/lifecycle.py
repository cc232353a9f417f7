"""What the sweep of sandboxes at rest keeps, and which replica has which duty."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.lifecycle import LifecycleStep
from sandboxd.persistence.tables.base import Base, Moment, SafeText, one_of


class SandboxLookRow(Base):
    """The sweep's last look at a sandbox: `manager.lifecycle_ports.Look`. Beside the sandbox, whose row is wide."""

    __tablename__ = "sandbox_looks"

    sandbox: Mapped[str] = mapped_column(ForeignKey("sandboxes.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[str | None]
    """What was announced; null where nothing is."""
    step_time: Mapped[Moment | None]
    idle_time: Mapped[Moment | None]
    """Since when the sandbox was idle then: a later use makes the announcement void."""
    incarnation: Mapped[str | None]
    """Whose processes were read."""
    reading_time: Mapped[Moment | None]
    cpu_seconds: Mapped[float | None] = mapped_column(Double())
    failures: Mapped[int]
    """Attempts in a row that failed."""
    hindrance: Mapped[str] = mapped_column(SafeText())
    """Why a step that is due is not taken, a constant word; empty where nothing hinders it."""

    __table_args__ = (
        one_of("step", LifecycleStep, optional=True),
        CheckConstraint(
            "(step IS NULL) = (step_time IS NULL) AND (step IS NULL) = (idle_time IS NULL)", name="announced"
        ),
        CheckConstraint(
            "(incarnation IS NULL) = (reading_time IS NULL) AND (incarnation IS NULL) = (cpu_seconds IS NULL)",
            name="reading",
        ),
    )


class DutyRow(Base):
    """A duty that one replica has at a time."""

    __tablename__ = "duties"

    duty: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    lease_until: Mapped[Moment]
    done_time: Mapped[Moment | None]
    """When it was last done to its end, by whomever."""
