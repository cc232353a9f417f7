"""What is known of each place that may have abandoned things.

Revision ID: 0034
Revises: 0033
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0034"
down_revision: str | None = "0033"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "abandoned_looks",
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("tried_time", _MOMENT, nullable=False),
        sa.Column("look_time", _MOMENT, nullable=True),
        sa.Column("things", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("place", name=op.f("pk_abandoned_looks")),
    )


def downgrade() -> None:
    op.drop_table("abandoned_looks")
