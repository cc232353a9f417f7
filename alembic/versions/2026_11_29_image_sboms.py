"""The packages of kept images, and where the registry has the list of them.

Revision ID: 0023
Revises: 0022
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0023"
down_revision: str | None = "0022"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "image_sboms",
        sa.Column("generation", sa.Text(), nullable=False),
        sa.Column("packages", sa.LargeBinary(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.Column("manifest_digest", sa.Text(), nullable=True),
        sa.Column("document_digest", sa.Text(), nullable=True),
        sa.Column("document_bytes", sa.BigInteger(), nullable=True),
        sa.Column("attach_time", _MOMENT, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failure", sa.Text(), nullable=False),
        sa.Column("next_time", _MOMENT, nullable=False),
        sa.CheckConstraint(
            "(manifest_digest IS NULL) = (attach_time IS NULL) "
            "AND (manifest_digest IS NULL) = (document_digest IS NULL) "
            "AND (manifest_digest IS NULL) = (document_bytes IS NULL)",
            name=op.f("ck_image_sboms_attached"),
        ),
        sa.ForeignKeyConstraint(
            ["generation"],
            ["image_generations.id"],
            name=op.f("fk_image_sboms_generation"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("generation", name=op.f("pk_image_sboms")),
    )
    op.create_index("ix_image_sboms_due", "image_sboms", ["next_time"], postgresql_where=sa.text("attach_time IS NULL"))


def downgrade() -> None:
    op.drop_table("image_sboms")
