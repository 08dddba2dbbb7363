"""The gateway's rows: run tokens, model calls, what task trees spent, breakers, throttles, gateways."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005_gateway"
down_revision = "0004_urgent_steps"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "run_tokens",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("root_id", sa.Text(), nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("conversation", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column(
            "models",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "issued_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "step_id"],
            ["steps.tenant_id", "steps.id"],
            name=op.f("fk_run_tokens_tenant_id_step_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "sha256", name=op.f("pk_run_tokens")),
    )
    op.create_index("ix_run_tokens_step", "run_tokens", ["tenant_id", "step_id"], unique=False)
    op.create_index("uq_run_tokens_sha256", "run_tokens", ["sha256"], unique=True)
    op.create_table(
        "model_calls",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("root_id", sa.Text(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("conversation", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("gateway_id", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("dialect", sa.Text(), nullable=False),
        sa.Column("streamed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("reserved_usd", sa.Numeric(), server_default=sa.text("0"), nullable=False),
        sa.Column("reserved_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("http_status", sa.Integer(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("input_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cache_read_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cache_write_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("estimated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("cost_usd", sa.Numeric(), nullable=True),
        sa.Column("evidence_key", sa.Text(), nullable=True),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("first_byte_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('cut', 'done', 'failed', 'lost')", name=op.f("ck_model_calls_outcome")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "sha256"],
            ["run_tokens.tenant_id", "run_tokens.sha256"],
            name=op.f("fk_model_calls_tenant_id_sha256"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_model_calls")),
    )
    op.create_index(
        "ix_model_calls_open",
        "model_calls",
        ["tenant_id", "root_id"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "ix_model_calls_task", "model_calls", ["tenant_id", "task_id", "started_at"], unique=False
    )
    op.create_table(
        "budgets",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("root_id", sa.Text(), nullable=False),
        sa.Column("spent_usd", sa.Numeric(), server_default=sa.text("0"), nullable=False),
        sa.Column("spent_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("calls", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("warned_for", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "root_id"],
            ["tasks.tenant_id", "tasks.id"],
            name=op.f("fk_budgets_tenant_id_root_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "root_id", name=op.f("pk_budgets")),
    )
    op.create_table(
        "breakers",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'closed'"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("successes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("probing_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("kind IN ('agent_type', 'provider')", name=op.f("ck_breakers_kind")),
        sa.CheckConstraint("state IN ('closed', 'half_open', 'open')", name=op.f("ck_breakers_state")),
        sa.PrimaryKeyConstraint("tenant_id", "kind", "name", name=op.f("pk_breakers")),
    )
    op.create_table(
        "throttles",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("until_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "provider", "model", name=op.f("pk_throttles")),
    )
    op.create_table(
        "gateways",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column(
            "providers",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "heartbeat_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_gateways")),
    )
    op.add_column("usage", sa.Column("call_id", sa.Text(), nullable=True))
    op.add_column("usage", sa.Column("provider", sa.Text(), nullable=True))
    op.add_column("usage", sa.Column("agent_type", sa.Text(), nullable=True))
    op.alter_column("usage", "turn", existing_type=sa.Integer(), nullable=True)
    op.create_index(
        "uq_usage_call",
        "usage",
        ["tenant_id", "call_id"],
        unique=True,
        postgresql_where=sa.text("call_id IS NOT NULL"),
    )


def downgrade() -> None:
    """Live calls have no turn that the older schema could keep them by."""
    op.drop_index("uq_usage_call", table_name="usage", postgresql_where=sa.text("call_id IS NOT NULL"))
    op.execute("DELETE FROM usage WHERE turn IS NULL")
    op.alter_column("usage", "turn", existing_type=sa.Integer(), nullable=False)
    for column in ("agent_type", "provider", "call_id"):
        op.drop_column("usage", column)
    for table in ("gateways", "throttles", "breakers", "budgets", "model_calls", "run_tokens"):
        op.drop_table(table)
