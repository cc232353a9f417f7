"""Make erasures with their proofs, and what is known of the clients' API keys.

Revision ID: 0014
Revises: 0013
Create Date: 2026-11-28 16:55:00.000000+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "erasures",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("freelancer", sa.Text(), nullable=True),
        sa.Column("begin_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("items", postgresql.JSONB(), nullable=False),
        sa.Column("pending", postgresql.JSONB(), nullable=True),
        sa.Column("document", postgresql.BYTEA(), nullable=True),
        sa.Column("signature", postgresql.BYTEA(), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("public_key", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(end_time IS NULL) = (document IS NULL) AND (document IS NULL) = (signature IS NULL)",
            name=op.f("ck_erasures_proof"),
        ),
        sa.ForeignKeyConstraint(["client"], ["clients.id"], name=op.f("fk_erasures_client")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
    )
    op.create_index(op.f("ix_erasures_client_begin_time_id"), "erasures", ["client", "begin_time", "id"], unique=False)
    op.create_index(
        "ix_erasures_unfinished",
        "erasures",
        ["begin_time", "id"],
        unique=False,
        postgresql_where=sa.text("end_time IS NULL"),
    )
    op.create_table(
        "api_keys",
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("previous_fingerprint", sa.Text(), nullable=False),
        sa.Column("previous_expire_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("set_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("rotate_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoke_time", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('SETTING', 'ACTIVE', 'REVOKED')", name=op.f("ck_api_keys_state")),
        sa.CheckConstraint("generation > 0", name=op.f("ck_api_keys_generation")),
        sa.ForeignKeyConstraint(["client"], ["clients.id"], name=op.f("fk_api_keys_client")),
        sa.PrimaryKeyConstraint("client", name=op.f("pk_api_keys")),
    )


def downgrade() -> None:
    op.drop_table("api_keys")
    op.drop_index("ix_erasures_unfinished", table_name="erasures", postgresql_where=sa.text("end_time IS NULL"))
    op.drop_index(op.f("ix_erasures_client_begin_time_id"), table_name="erasures")
    op.drop_table("erasures")
