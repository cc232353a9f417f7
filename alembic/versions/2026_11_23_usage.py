"""Make the ledger of model calls, the gateways that write it, and the price book.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-23 23:29:59.556397+00:00
"""

# ruff: noqa: E501

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gateways",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("beat_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateways")),
    )
    op.create_table(
        "prices",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("rates", postgresql.JSONB(), nullable=False),
        sa.Column("valid_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("valid_until IS NULL OR valid_until >= valid_from", name=op.f("ck_prices_validity")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prices")),
    )
    op.create_table(
        "usage_events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("freelancer", sa.Text(), nullable=False),
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("session", sa.Text(), nullable=True),
        sa.Column("turn", sa.Text(), nullable=True),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("http_status", sa.Integer(), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("block_reason", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("thoughts_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("tool_use_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cost_micros", sa.BigInteger(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("price", sa.Text(), nullable=True),
        sa.Column("reserved_prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reserved_output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("start_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("first_byte_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("end_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error_reason", sa.Text(), nullable=True),
        sa.CheckConstraint("(state = 'OPEN') = (end_time IS NULL)", name=op.f("ck_usage_events_end")),
        sa.CheckConstraint(
            "error_reason IS NULL OR error_reason IN ('UPSTREAM_STATUS', 'UPSTREAM_UNREACHABLE', 'UPSTREAM_TIMEOUT', 'UPSTREAM_CUT', 'UPSTREAM_MALFORMED', 'UPSTREAM_REDIRECT', 'RESPONSE_TOO_LARGE', 'CLIENT_GONE', 'GATEWAY_STOPPED', 'GATEWAY_FAILED', 'GATEWAY_LOST', 'NOT_FORWARDED')",
            name=op.f("ck_usage_events_error_reason"),
        ),
        sa.CheckConstraint(
            "method IN ('generateContent', 'streamGenerateContent', 'countTokens')", name=op.f("ck_usage_events_method")
        ),
        sa.CheckConstraint("state IN ('OPEN', 'SETTLED', 'ESTIMATED')", name=op.f("ck_usage_events_state")),
        sa.CheckConstraint("(cost_micros IS NULL) = (currency IS NULL)", name=op.f("ck_usage_events_cost")),
        sa.ForeignKeyConstraint(["sandbox"], ["sandboxes.id"], name=op.f("fk_usage_events_sandbox")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_events")),
    )
    op.create_index(op.f("ix_usage_events_client_id"), "usage_events", ["client", "id"], unique=False)
    op.create_index(op.f("ix_usage_events_client_start_time"), "usage_events", ["client", "start_time"], unique=False)
    op.create_index(op.f("ix_usage_events_freelancer_id"), "usage_events", ["freelancer", "id"], unique=False)
    op.create_index(
        "ix_usage_events_open", "usage_events", ["id"], unique=False, postgresql_where=sa.text("state = 'OPEN'")
    )
    op.create_index(op.f("ix_usage_events_sandbox_id"), "usage_events", ["sandbox", "id"], unique=False)
    op.create_index(
        "ix_usage_events_session",
        "usage_events",
        ["session", "id"],
        unique=False,
        postgresql_where=sa.text("session IS NOT NULL"),
    )
    op.create_index(
        "ix_usage_events_turn",
        "usage_events",
        ["turn", "id"],
        unique=False,
        postgresql_where=sa.text("turn IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_usage_events_turn", table_name="usage_events", postgresql_where=sa.text("turn IS NOT NULL"))
    op.drop_index("ix_usage_events_session", table_name="usage_events", postgresql_where=sa.text("session IS NOT NULL"))
    op.drop_index(op.f("ix_usage_events_sandbox_id"), table_name="usage_events")
    op.drop_index("ix_usage_events_open", table_name="usage_events", postgresql_where=sa.text("state = 'OPEN'"))
    op.drop_index(op.f("ix_usage_events_freelancer_id"), table_name="usage_events")
    op.drop_index(op.f("ix_usage_events_client_start_time"), table_name="usage_events")
    op.drop_index(op.f("ix_usage_events_client_id"), table_name="usage_events")
    op.drop_table("usage_events")
    op.drop_table("prices")
    op.drop_table("gateways")
