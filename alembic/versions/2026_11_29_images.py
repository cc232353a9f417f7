"""What sandboxes' root file systems are kept as: generations of images, and which one a sandbox starts from.

Revision ID: 0018
Revises: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_JSON = postgresql.JSONB(none_as_null=True)
_IN_FLIGHT = "status IN ('building', 'pushed', 'verified')"


def upgrade() -> None:
    # Nullable, so that the version still running can insert sandboxes without them.
    op.add_column("sandboxes", sa.Column("image_generation", sa.Text(), nullable=True))
    op.add_column("sandboxes", sa.Column("image_number", sa.Integer(), nullable=True))
    op.add_column("sandboxes", sa.Column("image_reference", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_sandboxes_image"),
        "sandboxes",
        "(image_generation IS NULL) = (image_number IS NULL)"
        " AND (image_generation IS NULL) = (image_reference IS NULL)",
    )
    op.create_table(
        "image_generations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("freelancer", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("registry_host", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.Column("given_up", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("progress_entries", sa.BigInteger(), nullable=False),
        sa.Column("progress_bytes", sa.BigInteger(), nullable=False),
        sa.Column("progress_total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("layer_digest", sa.Text(), nullable=False),
        sa.Column("diff_id", sa.Text(), nullable=False),
        sa.Column("raw_bytes", sa.BigInteger(), nullable=False),
        sa.Column("compressed_bytes", sa.BigInteger(), nullable=False),
        sa.Column("image_bytes", sa.BigInteger(), nullable=False),
        sa.Column("layers", sa.Integer(), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("largest", _JSON, nullable=False),
        sa.Column("left_out", _JSON, nullable=False),
        sa.Column("unchanged", sa.Boolean(), nullable=False),
        sa.Column("seconds", _JSON, nullable=False),
        sa.Column("failure", _JSON, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("create_time", _MOMENT, nullable=False),
        sa.Column("update_time", _MOMENT, nullable=False),
        sa.Column("capture_time", _MOMENT, nullable=True),
        sa.Column("push_time", _MOMENT, nullable=True),
        sa.Column("verify_time", _MOMENT, nullable=True),
        sa.Column("activate_time", _MOMENT, nullable=True),
        sa.Column("told_time", _MOMENT, nullable=True),
        sa.Column("end_time", _MOMENT, nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "trigger IN ('request', 'stop', 'pause', 'terminate', 'install')",
            name=op.f("ck_image_generations_trigger"),
        ),
        sa.CheckConstraint(
            "status IN ('building', 'pushed', 'verified', 'active', 'superseded', 'failed', 'discarded', 'deleting', "
            "'deleted')",
            name=op.f("ck_image_generations_status"),
        ),
        sa.CheckConstraint(
            "phase IN ('capture', 'push', 'verify', 'probe', 'activate')", name=op.f("ck_image_generations_phase")
        ),
        sa.CheckConstraint("number BETWEEN 1 AND 999999", name=op.f("ck_image_generations_number")),
        sa.CheckConstraint(
            "failure IS NULL OR status IN ('failed', 'superseded', 'deleting', 'deleted')",
            name=op.f("ck_image_generations_failure"),
        ),
        sa.CheckConstraint(
            "status IN ('building', 'failed', 'discarded') OR digest LIKE 'sha256:%' AND registry_host <> ''",
            name=op.f("ck_image_generations_digest"),
        ),
        sa.CheckConstraint(f"({_IN_FLIGHT}) = (end_time IS NULL)", name=op.f("ck_image_generations_end")),
        sa.ForeignKeyConstraint(["sandbox"], ["sandboxes.id"], name=op.f("fk_image_generations_sandbox")),
        sa.ForeignKeyConstraint(
            ["client", "freelancer"],
            ["freelancers.client", "freelancers.id"],
            name=op.f("fk_image_generations_client_freelancer"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_generations")),
    )
    op.create_index("uq_image_generations_number", "image_generations", ["client", "freelancer", "number"], unique=True)
    op.create_index(
        "uq_image_generations_in_flight",
        "image_generations",
        ["sandbox"],
        unique=True,
        postgresql_where=sa.text(_IN_FLIGHT),
    )
    op.create_index(
        "uq_image_generations_active",
        "image_generations",
        ["sandbox"],
        unique=True,
        postgresql_where=sa.text("status = 'active'"),
    )
    op.create_index(
        "uq_image_generations_request",
        "image_generations",
        ["client", "request_id"],
        unique=True,
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_index(op.f("ix_image_generations_sandbox_number"), "image_generations", ["sandbox", "number"])
    op.create_index(
        "ix_image_generations_unfinished", "image_generations", ["id"], postgresql_where=sa.text(_IN_FLIGHT)
    )
    op.create_index(
        "ix_image_generations_untold",
        "image_generations",
        ["id"],
        postgresql_where=sa.text("status = 'active' AND told_time IS NULL"),
    )
    op.create_index(op.f("ix_image_generations_digest"), "image_generations", ["digest"])
    op.create_index(
        "ix_image_generations_forgettable",
        "image_generations",
        ["end_time"],
        postgresql_where=sa.text("status IN ('failed', 'discarded', 'deleted')"),
    )


def downgrade() -> None:
    op.drop_table("image_generations")
    op.drop_constraint(op.f("ck_sandboxes_image"), "sandboxes")
    for column in ("image_reference", "image_number", "image_generation"):
        op.drop_column("sandboxes", column)
