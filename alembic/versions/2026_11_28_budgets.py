"""Make budgets, and let every change of the ledger move their sums in its own transaction.

Calls that a gateway of the version before opens reserve no money; a budget in money refuses them. Set the first budget
when all gateways are of this version.

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-28 16:20:00.000000+00:00
"""

# ruff: noqa: E501

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels = None
depends_on = None

_PERIOD = """
    CREATE FUNCTION sandboxd_budget_period(period text, at timestamptz) RETURNS date LANGUAGE sql IMMUTABLE
    AS $$ SELECT date_trunc(CASE period WHEN 'MONTH' THEN 'month' ELSE 'day' END, at AT TIME ZONE 'UTC')::date $$
"""
_RESERVED = """
    CREATE FUNCTION sandboxd_budget_reserved(call usage_events, unit text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
        SELECT CASE
            WHEN call.state <> 'OPEN' THEN 0
            WHEN unit = 'TOKENS' THEN call.reserved_prompt_tokens + call.reserved_output_tokens
            WHEN call.reserved_currency = unit THEN call.reserved_cost_micros
            ELSE 0
        END
    $$
"""
# A call that ended without a price (it was known when it began) counts as what it had reserved.
_SPENT = """
    CREATE FUNCTION sandboxd_budget_spent(call usage_events, unit text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
        SELECT CASE
            WHEN call.state = 'OPEN' THEN 0
            WHEN unit = 'TOKENS' THEN call.total_tokens
            WHEN call.currency = unit THEN call.cost_micros
            WHEN call.cost_micros IS NULL AND call.total_tokens > 0 AND call.reserved_currency = unit
                THEN call.reserved_cost_micros
            ELSE 0
        END
    $$
"""
# The lock is shared between calls of one client; whoever sets or recounts a budget takes it alone. Each statement below
# sees what was committed when it began, so after the lock no budget can be overlooked. Sums are locked in one order:
# client, freelancer, sandbox. Only an INSERT can be refused; a settlement always goes through.
_COUNT = """
    CREATE FUNCTION sandboxd_count_budgets() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        held record;
        account record;
        reserving bigint;
        spending bigint;
        reached integer;
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(1935828324, hashtext(NEW.client));
        FOR held IN
            SELECT b.*, sandboxd_budget_period(b.period, NEW.start_time) AS starts FROM budgets AS b
            WHERE b.client = NEW.client AND b.freelancer IN ('', NEW.freelancer) AND b.sandbox IN ('', NEW.sandbox)
                AND b.counted_from <= sandboxd_budget_period(b.period, NEW.start_time)
            ORDER BY b.sandbox <> '', b.freelancer <> '', b.id
        LOOP
            reserving := sandboxd_budget_reserved(NEW, held.unit);
            spending := sandboxd_budget_spent(NEW, held.unit);
            IF TG_OP = 'UPDATE' THEN
                reserving := reserving - sandboxd_budget_reserved(OLD, held.unit);
                spending := spending - sandboxd_budget_spent(OLD, held.unit);
            ELSIF held.unit <> 'TOKENS' AND NEW.reserved_currency IS DISTINCT FROM held.unit
                AND NEW.reserved_prompt_tokens + NEW.reserved_output_tokens > 0
            THEN
                RAISE EXCEPTION 'no price' USING ERRCODE = 'SB002', DETAIL = held.id;
            END IF;
            INSERT INTO budget_accounts AS a (budget, period_start, reserved, spent, warned)
            VALUES (held.id, held.starts, reserving, spending, 0)
            ON CONFLICT (budget, period_start)
                DO UPDATE SET reserved = a.reserved + excluded.reserved, spent = a.spent + excluded.spent
            RETURNING a.* INTO account;
            IF TG_OP = 'INSERT' AND reserving > 0 AND account.reserved + account.spent > held.limit_amount THEN
                RAISE EXCEPTION 'budget spent' USING ERRCODE = 'SB001', DETAIL = held.id;
            END IF;
            CONTINUE WHEN spending <= 0 OR held.limit_amount = 0;
            SELECT max(one) INTO reached FROM unnest(held.thresholds) AS one
            WHERE account.spent::numeric * 100 >= held.limit_amount::numeric * one;
            CONTINUE WHEN coalesce(reached, 0) <= account.warned;
            UPDATE budget_accounts SET warned = reached WHERE budget_accounts.budget = held.id AND period_start = held.starts;
            INSERT INTO budget_notices (id, budget, client, code, period_start, threshold, limit_amount, spent, reserved,
                freelancer, sandbox, turn, model, notice_time, written_by)
            VALUES (concat_ws('/', held.id, held.starts, 'BUDGET_LOW', reached, held.limit_amount), held.id,
                NEW.client, 'BUDGET_LOW', held.starts, reached, held.limit_amount, account.spent, account.reserved,
                NEW.freelancer, NEW.sandbox, NEW.turn, NEW.model, clock_timestamp(),
                pg_current_xact_id()::text::bigint)
            ON CONFLICT DO NOTHING;
        END LOOP;
        RETURN NULL;
    END
    $$
"""


def upgrade() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("freelancer", sa.Text(), nullable=False),
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("limit_amount", sa.BigInteger(), nullable=False),
        sa.Column("thresholds", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column("counted_from", sa.Date(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("freelancer = '' OR sandbox = ''", name=op.f("ck_budgets_level")),
        sa.CheckConstraint("limit_amount >= 0", name=op.f("ck_budgets_limit")),
        sa.CheckConstraint("period IN ('DAY', 'MONTH')", name=op.f("ck_budgets_period")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
    )
    op.create_index("uq_budgets_target", "budgets", ["client", "freelancer", "sandbox", "period", "unit"], unique=True)
    op.create_table(
        "budget_accounts",
        sa.Column("budget", sa.Text(), nullable=False),
        sa.Column("period_start", sa.Date(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("warned", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["budget"], ["budgets.id"], name=op.f("fk_budget_accounts_budget"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("budget", "period_start", name=op.f("pk_budget_accounts")),
    )
    op.create_table(
        "budget_notices",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("budget", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("period_start", sa.Date(), nullable=False),
        sa.Column("threshold", sa.Integer(), nullable=False),
        sa.Column("limit_amount", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("freelancer", sa.Text(), nullable=False),
        sa.Column("sandbox", sa.Text(), nullable=False),
        sa.Column("turn", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("notice_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("written_by", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "code IN ('BUDGET_LOW', 'BUDGET_SPENT', 'PRICE_UNKNOWN')", name=op.f("ck_budget_notices_code")
        ),
        sa.ForeignKeyConstraint(["budget"], ["budgets.id"], name=op.f("fk_budget_notices_budget"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budget_notices")),
    )
    op.create_index(op.f("ix_budget_notices_budget"), "budget_notices", ["budget"])
    op.create_index(op.f("ix_budget_notices_client_written_by"), "budget_notices", ["client", "written_by"])
    op.create_index(op.f("ix_budget_notices_notice_time"), "budget_notices", ["notice_time"])
    op.create_index("ix_budget_notices_turn", "budget_notices", ["turn"], postgresql_where=sa.text("turn IS NOT NULL"))
    op.add_column("usage_events", sa.Column("reserved_cost_micros", sa.BigInteger(), nullable=True))
    op.add_column("usage_events", sa.Column("reserved_currency", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_usage_events_reserved_cost"),
        "usage_events",
        "(reserved_cost_micros IS NULL) = (reserved_currency IS NULL)",
    )
    for statement in (_PERIOD, _RESERVED, _SPENT, _COUNT):
        op.execute(statement)
    op.execute(
        "CREATE TRIGGER count_budgets AFTER INSERT OR UPDATE OF state ON usage_events"
        " FOR EACH ROW EXECUTE FUNCTION sandboxd_count_budgets()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER count_budgets ON usage_events")
    op.execute("DROP FUNCTION sandboxd_count_budgets()")
    op.execute("DROP FUNCTION sandboxd_budget_spent(usage_events, text)")
    op.execute("DROP FUNCTION sandboxd_budget_reserved(usage_events, text)")
    op.execute("DROP FUNCTION sandboxd_budget_period(text, timestamptz)")
    op.drop_constraint(op.f("ck_usage_events_reserved_cost"), "usage_events")
    op.drop_column("usage_events", "reserved_currency")
    op.drop_column("usage_events", "reserved_cost_micros")
    op.drop_table("budget_notices")
    op.drop_table("budget_accounts")
    op.drop_table("budgets")
