"""Programs that no package manager knows, in the history of packages.

Revision ID: 0032
Revises: 0031
"""

from __future__ import annotations

from alembic import op

revision: str = "0032"
down_revision: str | None = "0031"
branch_labels = None
depends_on = None

_TABLE, _NAME = "package_changes", "ck_package_changes_manager"
_MANAGERS = "'dpkg', 'pip', 'npm', 'cargo', 'gem', 'go'"


def upgrade() -> None:
    _words(f"{_MANAGERS}, 'program'")


def downgrade() -> None:
    op.execute("DELETE FROM package_changes WHERE manager = 'program'")
    _words(_MANAGERS)


def _words(listed: str) -> None:
    op.drop_constraint(op.f(_NAME), _TABLE, type_="check")
    op.create_check_constraint(op.f(_NAME), _TABLE, f"manager IN ({listed})")
