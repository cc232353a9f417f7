"""Keep what sandboxes hold as intervals that open and close in the transaction of the change.

Revision ID: 0010
Revises: 0009
Create Date: 2026-11-28 16:45:00.000000+00:00
"""

# ruff: noqa: E501

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels = None
depends_on = None

# Level-triggered: looks at the rows as they are, closes what does not hold any more, opens what does. It runs at the
# end of the transaction, so the order in which rows were written does not matter. Who changes a sandbox holds its row.
_METER = """
    CREATE FUNCTION sandboxd_meter(of text) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        box sandboxes%ROWTYPE;
        life incarnations%ROWTYPE;
        held usage_intervals%ROWTYPE;
        ended incarnations%ROWTYPE;
        wanted text;
        moment timestamptz;
        before timestamptz;
        numbers integer;
        one text;
        size bigint;
        kept boolean;
    BEGIN
        SELECT * INTO box FROM sandboxes WHERE id = of;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        SELECT * INTO life FROM incarnations WHERE sandbox = of AND end_time IS NULL AND ready_time IS NOT NULL;
        wanted := CASE WHEN life.id IS NULL THEN NULL WHEN box.state = 'HIBERNATED' THEN 'HIBERNATED' ELSE 'ACTIVE' END;

        SELECT * INTO held FROM usage_intervals WHERE sandbox = of AND kind = 'RUNTIME' AND closed_time IS NULL;
        IF held.sandbox IS NOT NULL
            AND (wanted IS NULL OR (held.incarnation, held.state, held.tier) <> (life.id, wanted, box.tier))
        THEN
            SELECT * INTO ended FROM incarnations WHERE id = held.incarnation;
            moment := CASE
                WHEN ended.end_time IS NULL THEN box.update_time
                WHEN ended.end_reason = 'AGENT_LOST' THEN least(ended.end_time, coalesce(held.last_seen_time, held.opened_time))
                ELSE ended.end_time
            END;
            UPDATE usage_intervals SET closed_time = greatest(moment, opened_time),
                close_reason = CASE WHEN ended.end_time IS NULL THEN box.state ELSE ended.end_reason END
            WHERE sandbox = of AND kind = 'RUNTIME' AND closed_time IS NULL;
            held := NULL;
        END IF;
        IF wanted IS NOT NULL AND held.sandbox IS NULL THEN
            SELECT count(*), max(closed_time) INTO numbers, before FROM usage_intervals
            WHERE sandbox = of AND kind = 'RUNTIME';
            moment := CASE
                WHEN EXISTS (SELECT 1 FROM usage_intervals WHERE sandbox = of AND kind = 'RUNTIME' AND incarnation = life.id)
                    THEN box.update_time
                ELSE life.ready_time
            END;
            INSERT INTO usage_intervals (sandbox, kind, volume, number, client, freelancer, tier, state, size_bytes,
                incarnation, opened_time, close_reason)
            VALUES (of, 'RUNTIME', '', numbers + 1, box.client, box.freelancer, box.tier, wanted, 0, life.id,
                greatest(moment, before), '');
        END IF;

        SELECT min(ready_time) INTO moment FROM incarnations WHERE sandbox = of AND ready_time IS NOT NULL;
        kept := moment IS NOT NULL AND box.state NOT IN ('CREATING', 'TERMINATED');
        FOREACH one IN ARRAY ARRAY['home', 'workspace'] LOOP
            size := CASE box.tier WHEN 'basic' THEN 10000000000 WHEN 'standard' THEN 50000000000 ELSE 100000000000 END
                * CASE one WHEN 'home' THEN 20 ELSE 80 END / 100;
            SELECT * INTO held FROM usage_intervals
            WHERE sandbox = of AND kind = 'STORAGE' AND volume = one AND closed_time IS NULL;
            IF held.sandbox IS NOT NULL AND (NOT kept OR (held.tier, held.size_bytes) <> (box.tier, size)) THEN
                UPDATE usage_intervals
                SET closed_time = greatest(coalesce(box.terminate_time, box.update_time), opened_time),
                    close_reason = CASE WHEN kept THEN 'RESIZED' ELSE box.state END
                WHERE sandbox = of AND kind = 'STORAGE' AND volume = one AND closed_time IS NULL;
                held := NULL;
            END IF;
            IF kept AND held.sandbox IS NULL THEN
                SELECT count(*), max(closed_time) INTO numbers, before FROM usage_intervals
                WHERE sandbox = of AND kind = 'STORAGE' AND volume = one;
                INSERT INTO usage_intervals (sandbox, kind, volume, number, client, freelancer, tier, state, size_bytes,
                    incarnation, opened_time, close_reason)
                VALUES (of, 'STORAGE', one, numbers + 1, box.client, box.freelancer, box.tier, '', size, NULL,
                    CASE WHEN numbers = 0 THEN moment ELSE greatest(box.update_time, before) END, '');
            END IF;
        END LOOP;
    END
    $$
"""
_OF_SANDBOX = """
    CREATE FUNCTION sandboxd_meter_sandbox() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM sandboxd_meter(NEW.id);
        RETURN NULL;
    END
    $$
"""
_OF_INCARNATION = """
    CREATE FUNCTION sandboxd_meter_incarnation() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM sandboxd_meter(NEW.sandbox);
        RETURN NULL;
    END
    $$
"""
_TRIGGERS = (
    """
    CREATE CONSTRAINT TRIGGER meter AFTER UPDATE ON sandboxes DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((OLD.state, OLD.tier) IS DISTINCT FROM (NEW.state, NEW.tier)) EXECUTE FUNCTION sandboxd_meter_sandbox()
    """,
    """
    CREATE CONSTRAINT TRIGGER meter AFTER UPDATE ON incarnations DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((OLD.ready_time, OLD.end_time) IS DISTINCT FROM (NEW.ready_time, NEW.end_time))
    EXECUTE FUNCTION sandboxd_meter_incarnation()
    """,
    """
    CREATE CONSTRAINT TRIGGER meter_new AFTER INSERT ON incarnations DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.ready_time IS NOT NULL) EXECUTE FUNCTION sandboxd_meter_incarnation()
    """,
)


def upgrade() -> None:
    op.create_table(
        "usage_intervals",
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("volume", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("freelancer", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=True),
        sa.Column("opened_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("close_reason", sa.Text(), nullable=False),
        sa.CheckConstraint("closed_time IS NULL OR closed_time >= opened_time", name=op.f("ck_usage_intervals_span")),
        sa.CheckConstraint("kind IN ('RUNTIME', 'STORAGE')", name=op.f("ck_usage_intervals_kind")),
        sa.CheckConstraint("state IN ('', 'ACTIVE', 'HIBERNATED')", name=op.f("ck_usage_intervals_state")),
        sa.CheckConstraint("tier IN ('basic', 'standard', 'premium')", name=op.f("ck_usage_intervals_tier")),
        sa.ForeignKeyConstraint(["sandbox"], ["sandboxes.id"], name=op.f("fk_usage_intervals_sandbox")),
        sa.PrimaryKeyConstraint("sandbox", "kind", "volume", "number", name=op.f("pk_usage_intervals")),
    )
    op.create_index(op.f("ix_usage_intervals_client_opened_time"), "usage_intervals", ["client", "opened_time"])
    op.create_index(
        "ix_usage_intervals_living",
        "usage_intervals",
        ["incarnation"],
        postgresql_where=sa.text("closed_time IS NULL"),
    )
    op.create_index(
        "uq_usage_intervals_open",
        "usage_intervals",
        ["sandbox", "kind", "volume"],
        unique=True,
        postgresql_where=sa.text("closed_time IS NULL"),
    )
    for statement in (_METER, _OF_SANDBOX, _OF_INCARNATION, *_TRIGGERS):
        op.execute(statement)
    # What is there already begins to count as if it had always been counted.
    op.execute("SELECT sandboxd_meter(id) FROM sandboxes WHERE state <> 'TERMINATED'")


def downgrade() -> None:
    op.execute("DROP TRIGGER meter ON sandboxes")
    op.execute("DROP TRIGGER meter ON incarnations")
    op.execute("DROP TRIGGER meter_new ON incarnations")
    for function in ("sandboxd_meter_incarnation()", "sandboxd_meter_sandbox()", "sandboxd_meter(text)"):
        op.execute(f"DROP FUNCTION {function}")
    op.drop_table("usage_intervals")
