"""Sandboxes rest by policy: what each wants otherwise, when the sweep looks at it next, and what its looks found.

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels = None
depends_on = None

_RESTS = "state IN ('ACTIVE', 'HIBERNATED', 'STOPPED', 'PAUSED')"
_MOMENT = sa.DateTime(timezone=True)
_JSON = postgresql.JSONB(none_as_null=True)


def upgrade() -> None:
    # With defaults, so that the version still running can insert sandboxes without them.
    op.add_column("sandboxes", sa.Column("state_time", _MOMENT, nullable=True))
    op.add_column("sandboxes", sa.Column("lifecycle", _JSON, server_default=sa.text("'{}'"), nullable=False))
    op.add_column("sandboxes", sa.Column("keep_awake_until", _MOMENT, nullable=True))
    op.add_column("sandboxes", sa.Column("look_time", _MOMENT, server_default=sa.text("now()"), nullable=False))
    op.execute("UPDATE sandboxes SET state_time = update_time")
    op.create_index("ix_sandboxes_look_time", "sandboxes", ["look_time", "id"], postgresql_where=sa.text(_RESTS))
    op.create_table(
        "sandbox_looks",
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=True),
        sa.Column("step_time", _MOMENT, nullable=True),
        sa.Column("idle_time", _MOMENT, nullable=True),
        sa.Column("incarnation", sa.Text(), nullable=True),
        sa.Column("reading_time", _MOMENT, nullable=True),
        sa.Column("cpu_seconds", sa.Double(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("hindrance", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "step IS NULL OR step IN ('HIBERNATE', 'STOP', 'TERMINATE')", name=op.f("ck_sandbox_looks_step")
        ),
        sa.CheckConstraint(
            "(step IS NULL) = (step_time IS NULL) AND (step IS NULL) = (idle_time IS NULL)",
            name=op.f("ck_sandbox_looks_announced"),
        ),
        sa.CheckConstraint(
            "(incarnation IS NULL) = (reading_time IS NULL) AND (incarnation IS NULL) = (cpu_seconds IS NULL)",
            name=op.f("ck_sandbox_looks_reading"),
        ),
        sa.ForeignKeyConstraint(
            ["sandbox"], ["sandboxes.id"], name=op.f("fk_sandbox_looks_sandbox"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("sandbox", name=op.f("pk_sandbox_looks")),
    )
    op.create_table(
        "duties",
        sa.Column("duty", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", _MOMENT, nullable=False),
        sa.Column("done_time", _MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("duty", name=op.f("pk_duties")),
    )


def downgrade() -> None:
    op.drop_table("duties")
    op.drop_table("sandbox_looks")
    op.drop_index("ix_sandboxes_look_time", "sandboxes")
    for column in ("look_time", "keep_awake_until", "lifecycle", "state_time"):
        op.drop_column("sandboxes", column)
