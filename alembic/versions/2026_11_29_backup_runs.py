"""Why there is a backup set, how far it is, whether somebody wishes that it ends, and its checksum.

Revision ID: 0022
Revises: 0021
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0022"
down_revision: str | None = "0021"
branch_labels = None
depends_on = None


def _columns() -> Sequence[sa.Column[Any]]:  # Any: columns of any type
    # With defaults, so that the version still running can insert sets without them.
    return (
        sa.Column("trigger", sa.Text(), server_default=sa.text("'request'"), nullable=False),
        sa.Column("checksum", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("cancelled", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("progress", postgresql.JSONB(), nullable=True),
        sa.Column("failure_kind", sa.Text(), nullable=True),
        sa.Column("failure_message", sa.Text(), server_default=sa.text("''"), nullable=False),
    )


def upgrade() -> None:
    for column in _columns():
        op.add_column("backup_sets", column)
    triggers = "trigger IN ('request', 'schedule', 'terminate', 'restore')"
    op.create_check_constraint(op.f("ck_backup_sets_trigger"), "backup_sets", triggers)
    op.create_check_constraint(op.f("ck_backup_sets_attempts"), "backup_sets", "attempts > 0")


def downgrade() -> None:
    op.drop_constraint(op.f("ck_backup_sets_attempts"), "backup_sets")
    op.drop_constraint(op.f("ck_backup_sets_trigger"), "backup_sets")
    for column in reversed(_columns()):
        op.drop_column("backup_sets", column.name)
