"""Warm pools: what each client keeps ready, and the members that wait.

Revision ID: 0017
Revises: 0016
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_TIERS = "tier IN ('basic', 'standard', 'premium')"


def upgrade() -> None:
    op.create_table(
        "pools",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("template", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("min_size", sa.Integer(), nullable=False),
        sa.Column("target_size", sa.Integer(), nullable=False),
        sa.Column("max_size", sa.Integer(), nullable=False),
        sa.Column("idle_seconds", sa.BigInteger(), nullable=False),
        sa.Column("age_seconds", sa.BigInteger(), nullable=False),
        sa.Column("deleting", sa.Boolean(), nullable=False),
        sa.Column("create_time", _MOMENT, nullable=False),
        sa.Column("update_time", _MOMENT, nullable=False),
        sa.Column("use_time", _MOMENT, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(_TIERS, name=op.f("ck_pools_tier")),
        sa.CheckConstraint(
            "0 <= min_size AND min_size <= target_size AND target_size <= max_size", name=op.f("ck_pools_size")
        ),
        sa.ForeignKeyConstraint(["client"], ["clients.id"], name=op.f("fk_pools_client")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pools")),
    )
    op.create_index("uq_pools_target", "pools", ["client", "template", "tier"], unique=True)
    op.create_table(
        "pool_members",
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("server_name", sa.Text(), nullable=True),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("replica", sa.Text(), nullable=False),
        sa.Column("start_time", _MOMENT, nullable=False),
        sa.Column("ready_time", _MOMENT, nullable=True),
        sa.Column("end_reason", sa.Text(), nullable=True),
        sa.CheckConstraint(_TIERS, name=op.f("ck_pool_members_tier")),
        sa.CheckConstraint("state IN ('STARTING', 'READY', 'CLAIMED', 'ENDING')", name=op.f("ck_pool_members_state")),
        sa.CheckConstraint(
            "end_reason IS NULL OR end_reason IN ('stale', 'old', 'lost', 'shrunk', 'failed')",
            name=op.f("ck_pool_members_end_reason"),
        ),
        sa.CheckConstraint(
            "(host IS NULL) = (port IS NULL) AND (host IS NULL) = (server_name IS NULL)",
            name=op.f("ck_pool_members_endpoint"),
        ),
        sa.CheckConstraint("state <> 'READY' OR host IS NOT NULL", name=op.f("ck_pool_members_ready")),
        sa.ForeignKeyConstraint(["pool"], ["pools.id"], name=op.f("fk_pool_members_pool")),
        sa.PrimaryKeyConstraint("sandbox", name=op.f("pk_pool_members")),
    )
    op.create_index(op.f("ix_pool_members_pool_state"), "pool_members", ["pool", "state"])
    op.create_index(
        "ix_pool_members_ready",
        "pool_members",
        ["pool", "replica", "ready_time"],
        postgresql_where=sa.text("state = 'READY'"),
    )


def downgrade() -> None:
    op.drop_table("pool_members")
    op.drop_table("pools")
