"""Volumes of terminated sandboxes that were released, and the sets that are all that is left of them.

Revision ID: 0027
Revises: 0026
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0027"
down_revision: str | None = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("released", postgresql.JSONB(), nullable=True))
    op.add_column("backup_sets", sa.Column("pinned_time", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("backup_sets", "pinned_time")
    op.drop_column("sandboxes", "released")
