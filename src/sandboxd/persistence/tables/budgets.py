"""Budgets, what was counted against them in each period, and what was said about them."""

from __future__ import annotations

from datetime import date

from sqlalchemy import BigInteger, CheckConstraint, Date, ForeignKey, Index, Integer, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.budget import BudgetNoticeCode, BudgetPeriod
from sandboxd.persistence.tables.base import Base, Moment, SafeText, one_of


class BudgetRow(Base):
    """A limit: `model.budget.Budget`."""

    __tablename__ = "budgets"

    id: Mapped[str] = mapped_column(primary_key=True)
    client: Mapped[str]
    freelancer: Mapped[str]
    """Empty for a budget of the client or of a sandbox, so that the key below can hold it."""
    sandbox: Mapped[str]
    """Empty for a budget of the client or of a freelancer."""
    period: Mapped[str]
    unit: Mapped[str]
    limit_amount: Mapped[int] = mapped_column(BigInteger)
    thresholds: Mapped[list[int]] = mapped_column(ARRAY(Integer()))
    counted_from: Mapped[date] = mapped_column(Date())
    """First period whose calls are counted: that in which the budget was made."""
    create_time: Mapped[Moment]
    update_time: Mapped[Moment]

    __table_args__ = (
        one_of("period", BudgetPeriod),
        CheckConstraint("freelancer = '' OR sandbox = ''", name="level"),
        CheckConstraint("limit_amount >= 0", name="limit"),
        Index("uq_budgets_target", "client", "freelancer", "sandbox", "period", "unit", unique=True),
    )


class BudgetAccountRow(Base):
    """What was counted against a budget in one period. Written by the trigger on `usage_events`."""

    __tablename__ = "budget_accounts"

    budget: Mapped[str] = mapped_column(ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True)
    period_start: Mapped[date] = mapped_column(Date(), primary_key=True)
    reserved: Mapped[int] = mapped_column(BigInteger)
    spent: Mapped[int] = mapped_column(BigInteger)
    warned: Mapped[int]
    """Highest threshold that was passed and said."""


class BudgetNoticeRow(Base):
    """Something that was said about a budget; the id makes that it is said once."""

    __tablename__ = "budget_notices"

    id: Mapped[str] = mapped_column(primary_key=True)
    budget: Mapped[str] = mapped_column(ForeignKey("budgets.id", ondelete="CASCADE"))
    client: Mapped[str]
    code: Mapped[str]
    period_start: Mapped[date] = mapped_column(Date())
    threshold: Mapped[int]
    limit_amount: Mapped[int] = mapped_column(BigInteger)
    spent: Mapped[int] = mapped_column(BigInteger)
    reserved: Mapped[int] = mapped_column(BigInteger)
    freelancer: Mapped[str]
    """Of the call that was the reason."""
    sandbox: Mapped[str]
    turn: Mapped[str | None]
    model: Mapped[str] = mapped_column(SafeText())
    notice_time: Mapped[Moment]
    written_by: Mapped[int] = mapped_column(BigInteger)
    """Transaction that wrote it: readers go by it, because moments of different processes are in no order."""

    __table_args__ = (
        one_of("code", BudgetNoticeCode),
        Index(None, "budget"),
        Index(None, "client", "written_by"),
        Index(None, "notice_time"),
        Index("ix_budget_notices_turn", "turn", postgresql_where=text("turn IS NOT NULL")),
    )
