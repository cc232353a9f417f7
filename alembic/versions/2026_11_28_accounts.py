"""Give clients and freelancers a state, a name, a policy and quotas.

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-28 16:10:00.000000+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels = None
depends_on = None

STATES = "state IN ('ACTIVE', 'SUSPENDED', 'DELETING', 'DELETED')"
DELETED = "(state = 'DELETED') = (delete_time IS NOT NULL)"
"""What both tables check."""


def upgrade() -> None:
    # Every new column has a default or is optional: the version before this one inserts id and create_time alone.
    for table in ("clients", "freelancers"):
        op.add_column(table, sa.Column("display_name", sa.Text(), server_default=sa.text("''"), nullable=False))
        op.add_column(table, sa.Column("state", sa.Text(), server_default=sa.text("'ACTIVE'"), nullable=False))
        op.add_column(table, sa.Column("state_reason", sa.Text(), server_default=sa.text("''"), nullable=False))
        if table == "clients":
            op.add_column(
                table, sa.Column("policy", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False)
            )
        else:
            op.add_column(table, sa.Column("quotas", postgresql.JSONB(), nullable=True))
        op.add_column(
            table,
            sa.Column("update_time", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        )
        op.add_column(table, sa.Column("delete_time", sa.DateTime(timezone=True), nullable=True))
        op.add_column(table, sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False))
        op.create_check_constraint(op.f(f"ck_{table}_state"), table, STATES)
        op.create_check_constraint(op.f(f"ck_{table}_version"), table, "version > 0")
        op.create_check_constraint(op.f(f"ck_{table}_deleted"), table, DELETED)
    op.create_index(op.f("ix_clients_create_time_id"), "clients", ["create_time", "id"], unique=False)
    op.create_index(
        op.f("ix_freelancers_client_create_time_id"), "freelancers", ["client", "create_time", "id"], unique=False
    )
    deleting = sa.text("state = 'DELETING'")
    op.create_index("ix_clients_deleting", "clients", ["id"], unique=False, postgresql_where=deleting)
    op.create_index("ix_freelancers_deleting", "freelancers", ["client", "id"], unique=False, postgresql_where=deleting)


def downgrade() -> None:
    deleting = sa.text("state = 'DELETING'")
    op.drop_index("ix_freelancers_deleting", table_name="freelancers", postgresql_where=deleting)
    op.drop_index("ix_clients_deleting", table_name="clients", postgresql_where=deleting)
    op.drop_index(op.f("ix_freelancers_client_create_time_id"), table_name="freelancers")
    op.drop_index(op.f("ix_clients_create_time_id"), table_name="clients")
    for table in ("freelancers", "clients"):
        for name in ("deleted", "version", "state"):
            op.drop_constraint(op.f(f"ck_{table}_{name}"), table, type_="check")
        own = "policy" if table == "clients" else "quotas"
        for column in ("version", "delete_time", "update_time", own, "state_reason", "state", "display_name"):
            op.drop_column(table, column)
