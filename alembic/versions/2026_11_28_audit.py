"""Make the audit: chains, entries that nobody can change, texts that can be erased, open intents, signed heads.

Revision ID: 0012
Revises: 0011
Create Date: 2026-11-28 16:10:00+00:00
"""

# ruff: noqa: E501

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels = None
depends_on = None

PROTECTED = {
    "audit_chains": "DELETE",
    "audit_entries": "UPDATE OR DELETE",
    "audit_texts": "UPDATE",
    "audit_heads": "UPDATE OR DELETE",
}
"""What nobody may do to a table, its owner included. TRUNCATE is refused on all of them."""
REFUSE = """
CREATE FUNCTION sandboxd_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on % is refused: the audit is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$
"""
FORWARD = """
CREATE FUNCTION sandboxd_audit_head_moves_on() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.chain <> OLD.chain OR NEW.head_sequence <= OLD.head_sequence THEN
        RAISE EXCEPTION 'the head of an audit chain only moves on' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "audit_chains",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("head_sequence", sa.BigInteger(), nullable=False),
        sa.Column("head_hash", postgresql.BYTEA(), nullable=False),
        sa.Column("head_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("head_sequence >= 0 AND length(head_hash) = 32", name=op.f("ck_audit_chains_head")),
        sa.PrimaryKeyConstraint("chain", name=op.f("pk_audit_chains")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "audit_entries",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("intent", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("digests", postgresql.JSONB(), nullable=False),
        sa.Column("prev_hash", postgresql.BYTEA(), nullable=False),
        sa.Column("hash", postgresql.BYTEA(), nullable=False),
        sa.CheckConstraint("kind IN ('INTENT', 'OUTCOME', 'DENIED')", name=op.f("ck_audit_entries_kind")),
        sa.CheckConstraint(
            "sequence > 0 AND count > 0 AND length(prev_hash) = 32 AND length(hash) = 32",
            name=op.f("ck_audit_entries_link"),
        ),
        sa.CheckConstraint("(kind = 'OUTCOME') = (intent > 0)", name=op.f("ck_audit_entries_intent")),
        sa.PrimaryKeyConstraint("chain", "sequence", name=op.f("pk_audit_entries")),
        sa.UniqueConstraint("id", name=op.f("uq_audit_entries_id")),
    )
    op.create_index(op.f("ix_audit_entries_chain_time"), "audit_entries", ["chain", "time"], unique=False)
    op.create_index(
        op.f("ix_audit_entries_chain_target_sequence"), "audit_entries", ["chain", "target", "sequence"], unique=False
    )
    op.create_table(
        "audit_texts",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("salt", postgresql.BYTEA(), nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "sequence", "name", name=op.f("pk_audit_texts")),
    )
    op.create_index(op.f("ix_audit_texts_chain_person"), "audit_texts", ["chain", "person"], unique=False)
    op.create_index(
        "ix_audit_texts_actor",
        "audit_texts",
        ["chain", "value", "sequence"],
        unique=False,
        postgresql_where=sa.text("name = 'actor'"),
    )
    op.create_table(
        "audit_open_intents",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("replica", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "sequence", name=op.f("pk_audit_open_intents")),
    )
    op.create_table(
        "audit_heads",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("hash", postgresql.BYTEA(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("signature", postgresql.BYTEA(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "sequence", "key_id", name=op.f("pk_audit_heads")),
    )
    op.execute(REFUSE)
    op.execute(FORWARD)
    for table, deeds in PROTECTED.items():
        for name, what in ((f"{table}_refuse_change", deeds), (f"{table}_refuse_truncate", "TRUNCATE")):
            op.execute(
                f"CREATE TRIGGER {name} BEFORE {what} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION sandboxd_refuse_change()"
            )
            # Also for a session that says it is a replica (session_replication_role).
            op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")
    op.execute(
        "CREATE TRIGGER audit_chains_moves_on BEFORE UPDATE ON audit_chains FOR EACH ROW EXECUTE FUNCTION sandboxd_audit_head_moves_on()"
    )
    op.execute("ALTER TABLE audit_chains ENABLE ALWAYS TRIGGER audit_chains_moves_on")


def downgrade() -> None:
    op.drop_table("audit_heads")
    op.drop_table("audit_open_intents")
    op.drop_index("ix_audit_texts_actor", table_name="audit_texts", postgresql_where=sa.text("name = 'actor'"))
    op.drop_index(op.f("ix_audit_texts_chain_person"), table_name="audit_texts")
    op.drop_table("audit_texts")
    op.drop_index(op.f("ix_audit_entries_chain_target_sequence"), table_name="audit_entries")
    op.drop_index(op.f("ix_audit_entries_chain_time"), table_name="audit_entries")
    op.drop_table("audit_entries")
    op.drop_table("audit_chains")
    op.execute("DROP FUNCTION sandboxd_audit_head_moves_on()")
    op.execute("DROP FUNCTION sandboxd_refuse_change()")
