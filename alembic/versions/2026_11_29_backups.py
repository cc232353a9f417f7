"""Backup sets: what sandboxes are rebuilt from.

Revision ID: 0021
Revises: 0020
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0021"
down_revision: str | None = "0020"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_JSON = postgresql.JSONB(none_as_null=True)
_INDEXES = (
    ("ix_backup_sets_image", "image", "image <> ''"),
    ("ix_backup_sets_unfinished", "id", "status IN ('creating', 'deleting')"),
    ("ix_backup_sets_deleted", "update_time", "status = 'deleted'"),
)


def upgrade() -> None:
    op.create_table(
        "backup_sets",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("freelancer", sa.Text(), nullable=False),
        sa.Column("take_time", _MOMENT, nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("volumes", _JSON, nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("spec_version", sa.Integer(), nullable=False),
        sa.Column("consistency", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("locked_until", _MOMENT, nullable=True),
        sa.Column("failure", sa.Text(), nullable=False),
        sa.Column("proof", _JSON, nullable=True),
        sa.Column("create_time", _MOMENT, nullable=False),
        sa.Column("update_time", _MOMENT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("consistency IN ('quiesced', 'crash_consistent')", name=op.f("ck_backup_sets_consistency")),
        sa.CheckConstraint(
            "status IN ('creating', 'complete', 'failed', 'deleting', 'deleted')", name=op.f("ck_backup_sets_status")
        ),
        sa.CheckConstraint("spec_version > 0", name=op.f("ck_backup_sets_spec_version")),
        sa.CheckConstraint(
            "status <> 'complete' OR jsonb_array_length(volumes) = 2", name=op.f("ck_backup_sets_volumes")
        ),
        sa.CheckConstraint("(status = 'deleted') = (proof IS NOT NULL)", name=op.f("ck_backup_sets_proof")),
        sa.ForeignKeyConstraint(["sandbox"], ["sandboxes.id"], name=op.f("fk_backup_sets_sandbox")),
        sa.ForeignKeyConstraint(
            ["client", "freelancer"],
            ["freelancers.client", "freelancers.id"],
            name=op.f("fk_backup_sets_client_freelancer"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backup_sets")),
    )
    op.create_index(
        "uq_backup_sets_creating",
        "backup_sets",
        ["sandbox"],
        unique=True,
        postgresql_where=sa.text("status = 'creating'"),
    )
    op.create_index(op.f("ix_backup_sets_sandbox_take_time"), "backup_sets", ["sandbox", "take_time"])
    op.create_index(op.f("ix_backup_sets_client_take_time_id"), "backup_sets", ["client", "take_time", "id"])
    for name, column, where in _INDEXES:
        op.create_index(name, "backup_sets", [column], postgresql_where=sa.text(where))


def downgrade() -> None:
    op.drop_table("backup_sets")
