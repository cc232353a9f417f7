"""Make clients, freelancers, sandboxes with their incarnations, and the requests and operations on them.

Revision ID: 0001
Revises: nothing
Create Date: 2026-11-23 23:29:47.906303+00:00
"""

# ruff: noqa: E501

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "clients",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clients")),
    )
    op.create_table(
        "operations",
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("replica", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sandbox", name=op.f("pk_operations")),
    )
    op.create_index(op.f("ix_operations_id"), "operations", ["id"], unique=False)
    op.create_table(
        "request_ids",
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("body_hash", postgresql.BYTEA(), nullable=False),
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("outcome", postgresql.JSONB(), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("client", "request_id", name=op.f("pk_request_ids")),
    )
    op.create_index(
        "ix_request_ids_expire_time",
        "request_ids",
        ["expire_time"],
        unique=False,
        postgresql_where=sa.text("expire_time IS NOT NULL"),
    )
    op.create_index(
        "ix_request_ids_in_progress",
        "request_ids",
        ["sandbox"],
        unique=False,
        postgresql_where=sa.text("outcome IS NULL"),
    )
    op.create_table(
        "freelancers",
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["client"], ["clients.id"], name=op.f("fk_freelancers_client")),
        sa.PrimaryKeyConstraint("client", "id", name=op.f("pk_freelancers")),
    )
    op.create_table(
        "sandboxes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("freelancer", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("labels", postgresql.JSONB(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("approval_mode", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=True),
        sa.Column("incarnations", sa.Integer(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_use_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("terminate_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "approval_mode IN ('default', 'autoEdit', 'yolo', 'plan')", name=op.f("ck_sandboxes_approval_mode")
        ),
        sa.CheckConstraint("jsonb_typeof(labels) = 'object'", name=op.f("ck_sandboxes_labels")),
        sa.CheckConstraint(
            "state IN ('CREATING', 'ACTIVE', 'HIBERNATING', 'HIBERNATED', 'WAKING', 'STOPPING', 'STOPPED', 'STARTING', 'PAUSING', 'PAUSED', 'RESUMING', 'TERMINATING', 'TERMINATED', 'FAILED')",
            name=op.f("ck_sandboxes_state"),
        ),
        sa.CheckConstraint("tier IN ('basic', 'standard', 'premium')", name=op.f("ck_sandboxes_tier")),
        sa.CheckConstraint("version > 0", name=op.f("ck_sandboxes_version")),
        sa.ForeignKeyConstraint(
            ["client", "freelancer"],
            ["freelancers.client", "freelancers.id"],
            name=op.f("fk_sandboxes_client_freelancer"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandboxes")),
    )
    op.create_index(
        op.f("ix_sandboxes_client_create_time_id"), "sandboxes", ["client", "create_time", "id"], unique=False
    )
    op.create_index(op.f("ix_sandboxes_client_freelancer"), "sandboxes", ["client", "freelancer"], unique=False)
    op.create_index(
        op.f("ix_sandboxes_client_last_use_time_id"), "sandboxes", ["client", "last_use_time", "id"], unique=False
    )
    op.create_index(
        "ix_sandboxes_labels",
        "sandboxes",
        ["labels"],
        unique=False,
        postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
    )
    op.create_index(op.f("ix_sandboxes_state_id"), "sandboxes", ["state", "id"], unique=False)
    op.create_table(
        "incarnations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("server_name", sa.Text(), nullable=True),
        sa.Column("start_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ready_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("end_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("end_reason", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(host IS NULL) = (port IS NULL) AND (host IS NULL) = (server_name IS NULL)",
            name=op.f("ck_incarnations_endpoint"),
        ),
        sa.CheckConstraint("number > 0", name=op.f("ck_incarnations_number")),
        sa.ForeignKeyConstraint(["sandbox"], ["sandboxes.id"], name=op.f("fk_incarnations_sandbox")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incarnations")),
    )
    op.create_index(
        "ix_incarnations_living", "incarnations", ["id"], unique=False, postgresql_where=sa.text("end_time IS NULL")
    )
    op.create_index(
        "uq_incarnations_living", "incarnations", ["sandbox"], unique=True, postgresql_where=sa.text("end_time IS NULL")
    )
    op.create_index("uq_incarnations_number", "incarnations", ["sandbox", "number"], unique=True)


def downgrade() -> None:
    op.drop_index("uq_incarnations_number", table_name="incarnations")
    op.drop_index("uq_incarnations_living", table_name="incarnations", postgresql_where=sa.text("end_time IS NULL"))
    op.drop_index("ix_incarnations_living", table_name="incarnations", postgresql_where=sa.text("end_time IS NULL"))
    op.drop_table("incarnations")
    op.drop_index(op.f("ix_sandboxes_state_id"), table_name="sandboxes")
    op.drop_index(
        "ix_sandboxes_labels",
        table_name="sandboxes",
        postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
    )
    op.drop_index(op.f("ix_sandboxes_client_last_use_time_id"), table_name="sandboxes")
    op.drop_index(op.f("ix_sandboxes_client_freelancer"), table_name="sandboxes")
    op.drop_index(op.f("ix_sandboxes_client_create_time_id"), table_name="sandboxes")
    op.drop_table("sandboxes")
    op.drop_table("freelancers")
    op.drop_index("ix_request_ids_in_progress", table_name="request_ids", postgresql_where=sa.text("outcome IS NULL"))
    op.drop_index(
        "ix_request_ids_expire_time", table_name="request_ids", postgresql_where=sa.text("expire_time IS NOT NULL")
    )
    op.drop_table("request_ids")
    op.drop_index(op.f("ix_operations_id"), table_name="operations")
    op.drop_table("operations")
    op.drop_table("clients")
