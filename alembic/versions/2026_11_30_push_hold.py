"""The hold on pushes to the registry, the pushes in flight, and the phase of commits that wait for its end.

Revision ID: 0035
Revises: 0034
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0035"
down_revision: str | None = "0034"
branch_labels = None
depends_on = None

_GENERATIONS = "image_generations"
_PHASE = "ck_image_generations_phase"
_PHASES = "'replay', 'capture', 'push', 'verify', 'probe', 'activate'"


def upgrade() -> None:
    # The version still running pushes without a look at it: nobody may hold before all replicas are of this one.
    op.create_table(
        "push_hold",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("claim", sa.Text(), nullable=True),
        sa.Column("since_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("until_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("held_time", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_push_hold_one")),
        sa.CheckConstraint(
            "(holder IS NULL) = (claim IS NULL) AND (holder IS NULL) = (since_time IS NULL) "
            "AND (holder IS NULL) = (until_time IS NULL)",
            name=op.f("ck_push_hold_held"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_push_hold")),
    )
    op.execute("INSERT INTO push_hold (id) VALUES (1)")
    op.create_table(
        "image_pushes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("until_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_pushes")),
    )
    _phases(f"'held', {_PHASES}")


def downgrade() -> None:
    op.execute(f"UPDATE {_GENERATIONS} SET phase = 'capture' WHERE phase = 'held'")  # noqa: S608  constant text
    _phases(_PHASES)
    op.drop_table("image_pushes")
    op.drop_table("push_hold")


def _phases(listed: str) -> None:
    op.drop_constraint(op.f(_PHASE), _GENERATIONS, type_="check")
    op.create_check_constraint(op.f(_PHASE), _GENERATIONS, f"phase IN ({listed})")
