"""Images that a sandbox has from another one's backup: rows of a trigger of their own.

Revision ID: 0026
Revises: 0025
"""

from __future__ import annotations

from alembic import op

revision: str = "0026"
down_revision: str | None = "0025"
branch_labels = None
depends_on = None

_TABLE, _NAME = "image_generations", "ck_image_generations_trigger"
_TRIGGERS = "'request', 'stop', 'pause', 'terminate', 'install', 'upgrade'"


def upgrade() -> None:
    _words(f"{_TRIGGERS}, 'restore'")


def downgrade() -> None:
    op.execute("UPDATE image_generations SET trigger = 'request' WHERE trigger = 'restore'")
    _words(_TRIGGERS)


def _words(listed: str) -> None:
    op.drop_constraint(op.f(_NAME), _TABLE, type_="check")
    op.create_check_constraint(op.f(_NAME), _TABLE, f"trigger IN ({listed})")
