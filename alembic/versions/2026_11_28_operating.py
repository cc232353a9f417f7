"""Gateways report how they are, and replicas whether they drain, so that any replica can tell an operator.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("version", "circuit"):
        op.add_column("gateways", sa.Column(name, sa.Text(), server_default="", nullable=False))
    for name in ("open_calls", "spooled"):
        op.add_column("gateways", sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("gateways", sa.Column("reset_time", sa.DateTime(timezone=True), nullable=True))
    op.add_column("replicas", sa.Column("draining", sa.Boolean(), server_default=sa.text("false"), nullable=False))


def downgrade() -> None:
    op.drop_column("replicas", "draining")
    for name in ("reset_time", "spooled", "open_calls", "circuit", "version"):
        op.drop_column("gateways", name)
