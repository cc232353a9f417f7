"""Backups for which a running sandbox is to stand still.

Revision ID: 0028
Revises: 0027
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0028"
down_revision: str | None = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("backup_sets", sa.Column("freeze", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("backup_sets", "freeze")
