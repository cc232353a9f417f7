"""When images were seen in use last, and since when the registry has what no row knows of.

Revision ID: 0020
Revises: 0019
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0020"
down_revision: str | None = "0019"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "image_sightings",
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("use_time", _MOMENT, nullable=True),
        sa.Column("orphan_time", _MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("repository", "digest", name=op.f("pk_image_sightings")),
    )


def downgrade() -> None:
    op.drop_table("image_sightings")
