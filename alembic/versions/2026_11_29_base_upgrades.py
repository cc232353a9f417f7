"""Upgrades of bases: commits that make packages again on another base, with a phase and a policy of their own.

Revision ID: 0025
Revises: 0024
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0025"
down_revision: str | None = "0024"
branch_labels = None
depends_on = None

_TABLE = "image_generations"
_TRIGGERS = "'request', 'stop', 'pause', 'terminate', 'install'"
_PHASES = "'capture', 'push', 'verify', 'probe', 'activate'"


def upgrade() -> None:
    # Nullable, so that the version still running can insert commits without it. It never meets an upgrade's row unless
    # one is asked for while both versions run.
    op.add_column(_TABLE, sa.Column("replay_policy", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_image_generations_replay_policy"), _TABLE, "replay_policy IS NULL OR replay_policy IN ('fail', 'skip')"
    )
    _words("trigger", f"{_TRIGGERS}, 'upgrade'")
    _words("phase", f"'replay', {_PHASES}")


def downgrade() -> None:
    op.execute("DELETE FROM image_generations WHERE trigger = 'upgrade'")
    _words("phase", _PHASES)
    _words("trigger", _TRIGGERS)
    op.drop_constraint(op.f("ck_image_generations_replay_policy"), _TABLE, type_="check")
    op.drop_column(_TABLE, "replay_policy")


def _words(column: str, listed: str) -> None:
    name = op.f(f"ck_image_generations_{column}")
    op.drop_constraint(name, _TABLE, type_="check")
    op.create_check_constraint(name, _TABLE, f"{column} IN ({listed})")
