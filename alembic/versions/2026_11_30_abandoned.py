"""Since when things are seen abandoned.

Revision ID: 0030
Revises: 0029
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0030"
down_revision: str | None = "0029"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "abandoned_sightings",
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("first_time", _MOMENT, nullable=False),
        sa.Column("last_time", _MOMENT, nullable=False),
        sa.Column("looks", sa.Integer(), nullable=False),
        sa.Column("seen_seconds", sa.Float(), nullable=False),
        sa.CheckConstraint("looks > 0 AND seen_seconds >= 0", name=op.f("ck_abandoned_sightings_looks")),
        sa.PrimaryKeyConstraint("place", "name", name=op.f("pk_abandoned_sightings")),
    )


def downgrade() -> None:
    op.drop_table("abandoned_sightings")
