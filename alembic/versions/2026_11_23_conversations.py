"""Make conversations with their stdin and commands, and the sessions, turns and events that they write.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-23 23:29:53.578566+00:00
"""

# ruff: noqa: E501

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "commands",
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("body_hash", postgresql.BYTEA(), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("turn", sa.Text(), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("client", "request_id", name=op.f("pk_commands")),
    )
    op.create_index(op.f("ix_commands_create_time"), "commands", ["create_time"], unique=False)
    op.create_table(
        "events",
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("turn", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("event_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("sequence > 0", name=op.f("ck_events_sequence")),
        sa.PrimaryKeyConstraint("session", "sequence", name=op.f("pk_events")),
    )
    op.create_table(
        "conversations",
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("incarnation", sa.Text(), nullable=True),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("dialect", sa.Text(), nullable=False),
        sa.Column("consumed", sa.BigInteger(), nullable=False),
        sa.Column("written", sa.BigInteger(), nullable=False),
        sa.Column("snapshot", postgresql.JSONB(), nullable=False),
        sa.CheckConstraint("consumed >= 0 AND written >= 0", name=op.f("ck_conversations_offsets")),
        sa.CheckConstraint("epoch > 0", name=op.f("ck_conversations_epoch")),
        sa.ForeignKeyConstraint(["sandbox"], ["sandboxes.id"], name=op.f("fk_conversations_sandbox")),
        sa.PrimaryKeyConstraint("sandbox", name=op.f("pk_conversations")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "ix_conversations_process",
        "conversations",
        ["sandbox"],
        unique=False,
        postgresql_where=sa.text("process <> ''"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("freelancer", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("cli_session", sa.Text(), nullable=False),
        sa.Column("head_sequence", sa.BigInteger(), nullable=False),
        sa.Column("turns", sa.Integer(), nullable=False),
        sa.Column("open_turn", sa.Text(), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delete_time", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("head_sequence >= 0 AND turns >= 0", name=op.f("ck_sessions_counts")),
        sa.ForeignKeyConstraint(["sandbox"], ["sandboxes.id"], name=op.f("fk_sessions_sandbox")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        op.f("ix_sessions_sandbox_create_time_id"), "sessions", ["sandbox", "create_time", "id"], unique=False
    )
    op.create_index(
        op.f("ix_sessions_sandbox_update_time_id"), "sessions", ["sandbox", "update_time", "id"], unique=False
    )
    op.create_table(
        "stdin_records",
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("data", postgresql.BYTEA(), nullable=False),
        sa.ForeignKeyConstraint(["sandbox"], ["conversations.sandbox"], name=op.f("fk_stdin_records_sandbox")),
        sa.PrimaryKeyConstraint("sandbox", "incarnation", "process", "start", name=op.f("pk_stdin_records")),
    )
    op.create_table(
        "turns",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("start_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end_time", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'RUNNING', 'FINISHING', 'COMPLETED', 'FAILED')", name=op.f("ck_turns_state")
        ),
        sa.CheckConstraint(
            "stop_reason IS NULL OR stop_reason IN ('end_turn', 'cancelled', 'max_tokens', 'max_turn_requests', 'refusal', 'error', 'interrupted')",
            name=op.f("ck_turns_stop_reason"),
        ),
        sa.ForeignKeyConstraint(["session"], ["sessions.id"], name=op.f("fk_turns_session"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_turns")),
    )
    op.create_index(
        "ix_turns_open",
        "turns",
        ["sandbox"],
        unique=False,
        postgresql_where=sa.text("state IN ('QUEUED', 'RUNNING', 'FINISHING')"),
    )
    op.create_index("uq_turns_number", "turns", ["session", "number"], unique=True)
    op.create_table(
        "turn_attachments",
        sa.Column("turn", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=False),
        sa.Column("data", postgresql.BYTEA(), nullable=False),
        sa.ForeignKeyConstraint(["turn"], ["turns.id"], name=op.f("fk_turn_attachments_turn"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn", "position", name=op.f("pk_turn_attachments")),
    )


def downgrade() -> None:
    op.drop_table("turn_attachments")
    op.drop_index("uq_turns_number", table_name="turns")
    op.drop_index(
        "ix_turns_open", table_name="turns", postgresql_where=sa.text("state IN ('QUEUED', 'RUNNING', 'FINISHING')")
    )
    op.drop_table("turns")
    op.drop_table("stdin_records")
    op.drop_index(op.f("ix_sessions_sandbox_update_time_id"), table_name="sessions")
    op.drop_index(op.f("ix_sessions_sandbox_create_time_id"), table_name="sessions")
    op.drop_table("sessions")
    op.drop_index("ix_conversations_process", table_name="conversations", postgresql_where=sa.text("process <> ''"))
    op.drop_table("conversations")
    op.drop_table("events")
    op.drop_index(op.f("ix_commands_create_time"), table_name="commands")
    op.drop_table("commands")
