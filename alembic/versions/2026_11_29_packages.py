"""What is known of packages, their history, and what of a sandbox is unsaved.

Revision ID: 0019
Revises: 0018
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0019"
down_revision: str | None = "0018"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    # With defaults, so that the version still running can insert sandboxes without them.
    op.add_column("sandboxes", sa.Column("dirty_since", _MOMENT, nullable=True))
    op.add_column("sandboxes", sa.Column("unsaved_packages", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.create_index(
        "ix_sandboxes_dirty_since", "sandboxes", ["dirty_since"], postgresql_where=sa.text("dirty_since IS NOT NULL")
    )
    op.create_table(
        "sandbox_packages",
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("looked", sa.Boolean(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.Column("root_change_time", _MOMENT, nullable=True),
        sa.Column("look_time", _MOMENT, nullable=True),
        sa.Column("dirty_since", _MOMENT, nullable=True),
        sa.Column("other_unsaved_time", _MOMENT, nullable=True),
        sa.Column("saved_time", _MOMENT, nullable=True),
        sa.Column("saved_sequence", sa.BigInteger(), nullable=False),
        sa.Column("saved_root_time", _MOMENT, nullable=True),
        sa.Column("missed", sa.BigInteger(), nullable=False),
        sa.Column("packages", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "sequence >= 0 AND number >= 0 AND saved_sequence >= 0 AND missed >= 0",
            name=op.f("ck_sandbox_packages_numbers"),
        ),
        sa.ForeignKeyConstraint(
            ["sandbox"], ["sandboxes.id"], name=op.f("fk_sandbox_packages_sandbox"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("sandbox", name=op.f("pk_sandbox_packages")),
    )
    op.create_index("ix_sandbox_packages_owner", "sandbox_packages", ["owner"], postgresql_where=sa.text("owner <> ''"))
    op.create_table(
        "package_changes",
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("manager", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("old_version", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("requested", sa.Boolean(), nullable=False),
        sa.Column("change_time", _MOMENT, nullable=False),
        sa.Column("kept_time", _MOMENT, nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("requester", sa.Text(), nullable=False),
        sa.Column("session", sa.Text(), nullable=True),
        sa.Column("saved", sa.Boolean(), nullable=False),
        sa.CheckConstraint("kind IN ('installed', 'removed', 'changed')", name=op.f("ck_package_changes_kind")),
        sa.CheckConstraint(
            "manager IN ('dpkg', 'pip', 'npm', 'cargo', 'gem', 'go')", name=op.f("ck_package_changes_manager")
        ),
        sa.CheckConstraint("place IN ('root', 'home')", name=op.f("ck_package_changes_place")),
        sa.CheckConstraint(
            "requester IN ('session', 'terminal', 'image', 'unknown')", name=op.f("ck_package_changes_requester")
        ),
        sa.CheckConstraint("number > 0", name=op.f("ck_package_changes_number")),
        sa.ForeignKeyConstraint(
            ["sandbox"], ["sandboxes.id"], name=op.f("fk_package_changes_sandbox"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("sandbox", "number", name=op.f("pk_package_changes")),
    )
    op.create_index("uq_package_changes_told", "package_changes", ["sandbox", "incarnation", "sequence"], unique=True)
    op.create_index("ix_package_changes_kept_time", "package_changes", ["kept_time"])


def downgrade() -> None:
    op.drop_table("package_changes")
    op.drop_table("sandbox_packages")
    op.drop_index("ix_sandboxes_dirty_since", "sandboxes")
    op.drop_column("sandboxes", "unsaved_packages")
    op.drop_column("sandboxes", "dirty_since")
