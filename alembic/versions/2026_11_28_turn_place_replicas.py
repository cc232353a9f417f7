"""Note which replica has taken a place in a quota of turns, so that a dead one blocks nobody.

Revision ID: 0016
Revises: 0015
Create Date: 2026-11-28 20:45:00.000000+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turn_places", sa.Column("replica", sa.Text(), server_default=sa.text("''"), nullable=False))


def downgrade() -> None:
    op.drop_column("turn_places", "replica")
