"""Make the places that turns take in quotas before they begin.

Revision ID: 0013
Revises: 0012
Create Date: 2026-11-28 16:40:00.000000+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "turn_places",
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("freelancer", sa.Text(), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("client", "request_id", name=op.f("pk_turn_places")),
    )


def downgrade() -> None:
    op.drop_table("turn_places")
