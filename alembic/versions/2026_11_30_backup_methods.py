"""By which method a backup set was made: those that are there are trees of files.

Revision ID: 0029
Revises: 0028
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0029"
down_revision: str | None = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("backup_sets", sa.Column("method", sa.Text(), server_default=sa.text("'files'"), nullable=False))
    op.create_check_constraint(op.f("ck_backup_sets_method"), "backup_sets", "method IN ('files', 'snapshots')")


def downgrade() -> None:
    op.drop_constraint(op.f("ck_backup_sets_method"), "backup_sets")
    op.drop_column("backup_sets", "method")
