"""Note which transaction settled a call, so that a watcher can go on where it was.

Revision ID: 0011
Revises: 0010
Create Date: 2026-11-28 16:55:00.000000+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage_events", sa.Column("settled_by", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_usage_events_settled",
        "usage_events",
        ["client", "settled_by", "id"],
        postgresql_where=sa.text("settled_by IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_usage_events_settled", table_name="usage_events", postgresql_where=sa.text("settled_by IS NOT NULL")
    )
    op.drop_column("usage_events", "settled_by")
