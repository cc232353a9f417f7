"""The ledger of model calls, the gateways that write it, and the price book."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from sandboxd.model.usage import CallError, ModelMethod, UsageState
from sandboxd.persistence.tables.base import Base, Moment, SafeJson, SafeText, one_of


class UsageEventRow(Base):
    """One call of the model API: `model.usage.UsageEvent`."""

    __tablename__ = "usage_events"

    id: Mapped[str] = mapped_column(primary_key=True)
    gateway: Mapped[str]
    client: Mapped[str]
    freelancer: Mapped[str]
    sandbox: Mapped[str] = mapped_column(ForeignKey("sandboxes.id"))
    incarnation: Mapped[str]
    """Checked by the statement that writes the row."""
    session: Mapped[str | None]
    turn: Mapped[str | None]
    """No foreign key: a deleted session takes its turns with it, the ledger stays."""
    method: Mapped[str]
    model: Mapped[str] = mapped_column(SafeText())
    model_version: Mapped[str | None] = mapped_column(SafeText())
    state: Mapped[str]
    http_status: Mapped[int | None]
    finish_reason: Mapped[str | None] = mapped_column(SafeText())
    block_reason: Mapped[str | None] = mapped_column(SafeText())
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    output_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    thoughts_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    tool_use_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    total_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cost_micros: Mapped[int | None] = mapped_column(BigInteger)
    currency: Mapped[str | None]
    price: Mapped[str | None]
    reserved_prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    reserved_output_tokens: Mapped[int] = mapped_column(BigInteger)
    reserved_cost_micros: Mapped[int | None] = mapped_column(BigInteger)
    reserved_currency: Mapped[str | None]
    start_time: Mapped[Moment]
    first_byte_time: Mapped[Moment | None]
    end_time: Mapped[Moment | None]
    error_reason: Mapped[str | None]
    settled_by: Mapped[int | None] = mapped_column(BigInteger)
    """Transaction that settled or corrected it: watchers go by it, because moments of gateways are in no order."""

    __table_args__ = (
        one_of("method", ModelMethod),
        one_of("state", UsageState),
        one_of("error_reason", CallError, optional=True),
        CheckConstraint("(cost_micros IS NULL) = (currency IS NULL)", name="cost"),
        CheckConstraint("(reserved_cost_micros IS NULL) = (reserved_currency IS NULL)", name="reserved_cost"),
        CheckConstraint("(state = 'OPEN') = (end_time IS NULL)", name="end"),
        Index(None, "client", "id"),
        Index(None, "client", "start_time"),
        Index(None, "freelancer", "id"),
        Index(None, "sandbox", "id"),
        Index("ix_usage_events_session", "session", "id", postgresql_where=text("session IS NOT NULL")),
        Index("ix_usage_events_turn", "turn", "id", postgresql_where=text("turn IS NOT NULL")),
        Index(
            "ix_usage_events_settled",
            "client",
            "settled_by",
            "id",
            postgresql_where=text("settled_by IS NOT NULL"),
        ),
        Index("ix_usage_events_open", "id", postgresql_where=text("state = 'OPEN'")),
    )


class GatewayRow(Base):
    """When a gateway was last heard of, by the database's clock."""

    __tablename__ = "gateways"

    id: Mapped[str] = mapped_column(primary_key=True)
    beat_time: Mapped[Moment]
    version: Mapped[str] = mapped_column(server_default="")
    circuit: Mapped[str] = mapped_column(server_default="")
    """Of the last report, as the two below."""
    open_calls: Mapped[int] = mapped_column(server_default=text("0"))
    spooled: Mapped[int] = mapped_column(server_default=text("0"))
    reset_time: Mapped[Moment | None]
    """When an operator last asked this gateway to close its circuit."""


class PriceRow(Base):
    """What a model costs in a span of time: `model.pricing.Price`."""

    __tablename__ = "prices"

    id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str]
    currency: Mapped[str]
    rates: Mapped[list[dict[str, Any]]] = mapped_column(SafeJson)
    valid_from: Mapped[Moment]
    valid_until: Mapped[Moment | None]

    __table_args__ = (CheckConstraint("valid_until IS NULL OR valid_until >= valid_from", name="validity"),)
