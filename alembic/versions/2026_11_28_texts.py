"""Remember how far a client's policy was applied to a session's texts, and find turns by their end.

Revision ID: 0008
Revises: 0007
Create Date: 2026-11-28 16:45:00.000000+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in ("text_redacted", "text_erased"):
        op.add_column("sessions", sa.Column(column, sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.create_index("ix_turns_end_time", "turns", ["end_time"], postgresql_where=sa.text("end_time IS NOT NULL"))


def downgrade() -> None:
    op.drop_index("ix_turns_end_time", table_name="turns", postgresql_where=sa.text("end_time IS NOT NULL"))
    for column in ("text_erased", "text_redacted"):
        op.drop_column("sessions", column)
