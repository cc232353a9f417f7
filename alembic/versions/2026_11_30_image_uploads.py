"""Uploads to the registry that are open.

Revision ID: 0033
Revises: 0032
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0033"
down_revision: str | None = "0032"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "image_uploads",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("generation", sa.Text(), nullable=False),
        sa.Column("begin_time", _MOMENT, nullable=False),
        sa.Column("update_time", _MOMENT, nullable=False),
        sa.Column("sent_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("sent_bytes >= 0 AND total_bytes >= 0", name=op.f("ck_image_uploads_bytes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_uploads")),
    )
    op.create_index(op.f("ix_image_uploads_update_time"), "image_uploads", ["update_time"])


def downgrade() -> None:
    op.drop_index(op.f("ix_image_uploads_update_time"), "image_uploads")
    op.drop_table("image_uploads")
