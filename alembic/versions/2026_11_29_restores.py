"""A sandbox that is being restored, and what it gets back.

Revision ID: 0024
Revises: 0023
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0024"
down_revision: str | None = "0023"
branch_labels = None
depends_on = None

_BEFORE = (
    "'CREATING', 'ACTIVE', 'HIBERNATING', 'HIBERNATED', 'WAKING', 'STOPPING', 'STOPPED', 'STARTING', 'PAUSING', "
    "'PAUSED', 'RESUMING'"
)
_AFTER = "'TERMINATING', 'TERMINATED', 'FAILED'"


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("restoring", postgresql.JSONB(), nullable=True))
    op.drop_constraint(op.f("ck_sandboxes_state"), "sandboxes")
    op.create_check_constraint(op.f("ck_sandboxes_state"), "sandboxes", f"state IN ({_BEFORE}, 'RESTORING', {_AFTER})")


def downgrade() -> None:
    op.drop_constraint(op.f("ck_sandboxes_state"), "sandboxes")
    op.create_check_constraint(op.f("ck_sandboxes_state"), "sandboxes", f"state IN ({_BEFORE}, {_AFTER})")
    op.drop_column("sandboxes", "restoring")
