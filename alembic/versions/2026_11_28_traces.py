"""A turn keeps the trace context of the call that started it.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # With a default, so that the version still running can insert turns without it.
    op.add_column("turns", sa.Column("traceparent", sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    op.drop_column("turns", "traceparent")
