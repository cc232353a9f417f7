"""Restore drills: which backup set was brought back, booted and compared, and what that came to.

Revision ID: 0031
Revises: 0030
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0031"
down_revision: str | None = "0030"
branch_labels = None
depends_on = None

_TABLE = "restore_drills"
_MOMENT = sa.DateTime(timezone=True)
_JSON = postgresql.JSONB(none_as_null=True)


def upgrade() -> None:
    op.create_table(
        _TABLE,
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("id", "backup", "sandbox", "client", "freelancer")),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("volumes", _JSON, nullable=False),
        sa.Column("seconds", _JSON, nullable=False),
        sa.Column("failure", sa.Text(), nullable=False),
        sa.Column("failure_message", sa.Text(), nullable=False),
        sa.Column("create_time", _MOMENT, nullable=False),
        sa.Column("update_time", _MOMENT, nullable=False),
        sa.Column("end_time", _MOMENT, nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("trigger IN ('schedule', 'request')", name=op.f("ck_restore_drills_trigger")),
        sa.CheckConstraint(
            "status IN ('running', 'passed', 'failed', 'abandoned')", name=op.f("ck_restore_drills_status")
        ),
        sa.CheckConstraint("(status = 'running') = (end_time IS NULL)", name=op.f("ck_restore_drills_end")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_restore_drills")),
    )
    running, asked = sa.text("status = 'running'"), sa.text("request_id IS NOT NULL")
    op.create_index("uq_restore_drills_running", _TABLE, ["status"], unique=True, postgresql_where=running)
    op.create_index("uq_restore_drills_request", _TABLE, ["request_id"], unique=True, postgresql_where=asked)
    op.create_index(op.f("ix_restore_drills_create_time_id"), _TABLE, ["create_time", "id"])
    op.create_index(op.f("ix_restore_drills_client_create_time_id"), _TABLE, ["client", "create_time", "id"])
    op.create_index(op.f("ix_restore_drills_sandbox_create_time"), _TABLE, ["sandbox", "create_time"])


def downgrade() -> None:
    op.drop_table(_TABLE)
