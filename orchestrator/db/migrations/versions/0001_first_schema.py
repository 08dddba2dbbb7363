"""The first schema: every row of the spine, its checks and its guards."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from orchestrator.db.migrations.guards import GUARDS

revision = "0001_first_schema"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "agents",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'provisioning'"), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column(
            "queues",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "capabilities",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "models",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "resources",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("step_id", sa.Text(), nullable=True),
        sa.Column("drain_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "registered_at",
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
        sa.Column("progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('busy', 'draining', 'idle', 'offline', 'provisioning', 'released')",
            name=op.f("ck_agents_status"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_agents")),
    )
    op.create_index(
        "ix_agents_alive",
        "agents",
        ["heartbeat_at"],
        unique=False,
        postgresql_where=sa.text("status NOT IN ('offline', 'released')"),
    )
    op.create_table(
        "api_keys",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column(
            "scopes",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_api_keys")),
    )
    op.create_index("uq_api_keys_sha256", "api_keys", ["sha256"], unique=True)
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("body", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column(
            "headers",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "limits",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("maximum", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("pk_limits")),
    )
    op.create_table(
        "repositories",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("mirror_key", sa.Text(), nullable=True),
        sa.Column("default_branch", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("fetched_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_repositories")),
    )
    op.create_index("uq_repositories_url", "repositories", ["tenant_id", "url"], unique=True)
    op.create_table(
        "settings",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("pk_settings")),
    )
    op.create_table(
        "tasks",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("priority", sa.Text(), server_default=sa.text("'medium'"), nullable=False),
        sa.Column("execution_mode", sa.Text(), server_default=sa.text("'auto'"), nullable=False),
        sa.Column("on_step_failure", sa.Text(), server_default=sa.text("'stop'"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'queued'"), nullable=False),
        sa.Column("waiting_on", sa.Text(), nullable=True),
        sa.Column("waiting_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "waiting_detail", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column("outcome", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("result", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column(
            "request",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "warnings",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column("root_id", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("parent_step_id", sa.Text(), nullable=True),
        sa.Column("depth", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_by", sa.Text(), server_default=sa.text("'unknown'"), nullable=False),
        sa.Column("account", sa.Text(), nullable=True),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "requirements",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "stakeholders",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "labels",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "budget",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("agent_type", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("repository_url", sa.Text(), nullable=True),
        sa.Column("repository_branch", sa.Text(), nullable=True),
        sa.Column("push", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("base_commit", sa.Text(), nullable=True),
        sa.Column("tip_commit", sa.Text(), nullable=True),
        sa.Column("previous", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("workflow_number", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("event_number", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("log_number", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("open_questions", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_reason", sa.Text(), nullable=True),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "entry_signature", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column("entry_lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("entry_delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("notified_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status IN ('cancelled', 'completed', 'failed')) = (finished_at IS NOT NULL)",
            name=op.f("ck_tasks_finished_when_terminal"),
        ),
        sa.CheckConstraint(
            "execution_mode IN ('auto', 'dry_run', 'strict')", name=op.f("ck_tasks_execution_mode")
        ),
        sa.CheckConstraint("on_step_failure IN ('continue', 'stop')", name=op.f("ck_tasks_on_step_failure")),
        sa.CheckConstraint(
            "priority IN ('critical', 'high', 'low', 'medium')", name=op.f("ck_tasks_priority")
        ),
        sa.CheckConstraint(
            "status IN ('cancelled', 'completed', 'failed', 'pending_input', 'queued', 'running')",
            name=op.f("ck_tasks_status"),
        ),
        sa.CheckConstraint(
            "waiting_on IS NULL OR (status = 'pending_input' AND waiting_on IN ('budget', 'council_decision', 'escalation', 'manual_review', 'paused', 'plan_approval', 'question', 'step_confirmation', 'tool_approval')) OR (status = 'running' AND waiting_on IN ('external_ci', 'merge', 'rate_limit', 'subtask')) OR (status = 'queued' AND waiting_on IN ('agent', 'circuit_breaker', 'dependency', 'retry_backoff', 'slot'))",
            name=op.f("ck_tasks_waiting_on"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_tasks")),
    )
    op.create_index("ix_tasks_created", "tasks", ["tenant_id", "created_at", "id"], unique=False)
    op.create_index(
        "ix_tasks_live",
        "tasks",
        ["tenant_id", "status", "created_at"],
        unique=False,
        postgresql_where=sa.text("status IN ('pending_input', 'queued', 'running')"),
    )
    op.create_index(
        "ix_tasks_parent",
        "tasks",
        ["tenant_id", "parent_id"],
        unique=False,
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index(
        "ix_tasks_undelivered",
        "tasks",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text("entry_signature IS NOT NULL AND entry_delivered_at IS NULL"),
    )
    op.create_index(
        "uq_tasks_external_id",
        "tasks",
        ["tenant_id", "external_id"],
        unique=True,
        postgresql_where=sa.text("external_id IS NOT NULL"),
    )
    op.create_table(
        "artifacts",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=True),
        sa.Column("step_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "task_id"],
            ["tasks.tenant_id", "tasks.id"],
            name=op.f("fk_artifacts_tenant_id_task_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_artifacts")),
        sa.UniqueConstraint(
            "tenant_id",
            "task_id",
            "workflow_id",
            "name",
            name=op.f("uq_artifacts_tenant_id_task_id_workflow_id_name"),
        ),
    )
    op.create_index("ix_artifacts_task", "artifacts", ["tenant_id", "task_id", "created_at"], unique=False)
    op.create_table(
        "effects",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column(
            "data",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "task_id"],
            ["tasks.tenant_id", "tasks.id"],
            name=op.f("fk_effects_tenant_id_task_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_effects")),
    )
    op.create_index("ix_effects_task", "effects", ["tenant_id", "task_id"], unique=False)
    op.create_table(
        "events",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=True),
        sa.Column("step_id", sa.Text(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=True),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "data",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "task_id"],
            ["tasks.tenant_id", "tasks.id"],
            name=op.f("fk_events_tenant_id_task_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "task_id", "number", name=op.f("pk_events")),
    )
    op.create_table(
        "interventions",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'requested'"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "details",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column(
            "requested_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "command IN ('cancel', 'escalate', 'modify', 'override', 'pause', 'resume', 'retry')",
            name=op.f("ck_interventions_command"),
        ),
        sa.CheckConstraint(
            "state IN ('acknowledged', 'applied', 'rejected', 'requested', 'timed_out')",
            name=op.f("ck_interventions_state"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "task_id"],
            ["tasks.tenant_id", "tasks.id"],
            name=op.f("fk_interventions_tenant_id_task_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_interventions")),
    )
    op.create_index(
        "ix_interventions_task", "interventions", ["tenant_id", "task_id", "requested_at"], unique=False
    )
    op.create_table(
        "logs",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), server_default=sa.text("'info'"), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"], name=op.f("fk_logs_tenant_id_task_id")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "task_id", "number", name=op.f("pk_logs")),
    )
    op.create_table(
        "messages",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=True),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "task_id"],
            ["tasks.tenant_id", "tasks.id"],
            name=op.f("fk_messages_tenant_id_task_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_messages")),
    )
    op.create_index(
        "ix_messages_waiting",
        "messages",
        ["tenant_id", "task_id", "id"],
        unique=False,
        postgresql_where=sa.text("delivered_at IS NULL"),
    )
    op.create_table(
        "workflows",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("result", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column(
            "details",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "phase IN ('agent_assignment', 'cancelled', 'dependency_resolution', 'failed', 'merged', 'nlp_parsing', 'pending', 'pr_created', 'processing', 'task_decomposition', 'validation_failed', 'validation_passed', 'validation_running')",
            name=op.f("ck_workflows_phase"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "task_id"],
            ["tasks.tenant_id", "tasks.id"],
            name=op.f("fk_workflows_tenant_id_task_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_workflows")),
        sa.UniqueConstraint(
            "tenant_id", "task_id", "number", name=op.f("uq_workflows_tenant_id_task_id_number")
        ),
    )
    op.create_table(
        "plan_revisions",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("plan", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "workflow_id"],
            ["workflows.tenant_id", "workflows.id"],
            name=op.f("fk_plan_revisions_tenant_id_workflow_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "workflow_id", "number", name=op.f("pk_plan_revisions")),
    )
    op.create_table(
        "steps",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("plan_revision", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), server_default=sa.text("'agent'"), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column(
            "spec",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("agent_type", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("priority", sa.Text(), server_default=sa.text("'medium'"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'queued'"), nullable=False),
        sa.Column("waiting_on", sa.Text(), nullable=True),
        sa.Column("waiting_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "waiting_detail", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("fence", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default=sa.text("5"), nullable=False),
        sa.Column("given_back", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("conflicts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("publications", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("published_by", sa.Text(), server_default=sa.text("'canvas'"), nullable=False),
        sa.Column("published_alone", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("signature", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("canvas", sa.Integer(), nullable=True),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("start_commit", sa.Text(), nullable=True),
        sa.Column("result_commit", sa.Text(), nullable=True),
        sa.Column("branch_commit", sa.Text(), nullable=True),
        sa.Column("summary", sa.Text(), nullable=True),
        sa.Column("result", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status IN ('cancelled', 'completed', 'failed')) = (finished_at IS NOT NULL)",
            name=op.f("ck_steps_finished_when_terminal"),
        ),
        sa.CheckConstraint(
            "CASE WHEN status = 'running' THEN (lease_until IS NULL) = (waiting_on IS NOT NULL) ELSE lease_until IS NULL END",
            name=op.f("ck_steps_lease_or_machine"),
        ),
        sa.CheckConstraint(
            "priority IN ('critical', 'high', 'low', 'medium', 'system')", name=op.f("ck_steps_priority")
        ),
        sa.CheckConstraint(
            "published_by IN ('canvas', 'release', 'sweep', 'wake')", name=op.f("ck_steps_published_by")
        ),
        sa.CheckConstraint(
            "status IN ('cancelled', 'completed', 'failed', 'pending_input', 'queued', 'running')",
            name=op.f("ck_steps_status"),
        ),
        sa.CheckConstraint(
            "waiting_on IS NULL OR (status = 'pending_input' AND waiting_on IN ('budget', 'council_decision', 'escalation', 'manual_review', 'paused', 'plan_approval', 'question', 'step_confirmation', 'tool_approval')) OR (status = 'running' AND waiting_on IN ('external_ci', 'merge', 'rate_limit', 'subtask')) OR (status = 'queued' AND waiting_on IN ('agent', 'circuit_breaker', 'dependency', 'retry_backoff', 'slot'))",
            name=op.f("ck_steps_waiting_on"),
        ),
        sa.CheckConstraint("attempt >= 0 AND fence >= attempt", name=op.f("ck_steps_fence_rises")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"], name=op.f("fk_steps_tenant_id_task_id")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "workflow_id"],
            ["workflows.tenant_id", "workflows.id"],
            name=op.f("fk_steps_tenant_id_workflow_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_steps")),
        sa.UniqueConstraint(
            "tenant_id", "workflow_id", "key", name=op.f("uq_steps_tenant_id_workflow_id_key")
        ),
        sa.UniqueConstraint(
            "tenant_id", "workflow_id", "number", name=op.f("uq_steps_tenant_id_workflow_id_number")
        ),
    )
    op.create_index(
        "ix_steps_claimed",
        "steps",
        ["priority", "claimed_at"],
        unique=False,
        postgresql_where=sa.text("claimed_at IS NOT NULL"),
    )
    op.create_index(
        "ix_steps_leases",
        "steps",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("lease_until IS NOT NULL"),
    )
    op.create_index(
        "ix_steps_not_before",
        "steps",
        ["not_before"],
        unique=False,
        postgresql_where=sa.text("status IN ('queued', 'running') AND not_before IS NOT NULL"),
    )
    op.create_index(
        "ix_steps_ready",
        "steps",
        ["published_at"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND ready_at IS NOT NULL"),
    )
    op.create_index("ix_steps_task", "steps", ["tenant_id", "task_id"], unique=False)
    op.create_table(
        "workflow_history",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("from_state", sa.Text(), nullable=True),
        sa.Column("to_state", sa.Text(), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "details",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "workflow_id"],
            ["workflows.tenant_id", "workflows.id"],
            name=op.f("fk_workflow_history_tenant_id_workflow_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_workflow_history")),
    )
    op.create_index(
        "ix_workflow_history_workflow", "workflow_history", ["tenant_id", "workflow_id", "id"], unique=False
    )
    op.create_table(
        "attempts",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("first_fence", sa.Integer(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "step_id"],
            ["steps.tenant_id", "steps.id"],
            name=op.f("fk_attempts_tenant_id_step_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "step_id", "number", name=op.f("pk_attempts")),
    )
    op.create_table(
        "questions",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), server_default=sa.text("'question'"), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column(
            "options",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column("answer_schema", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("subject_digest", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("on_expiry", sa.Text(), nullable=True),
        sa.Column(
            "asked_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("answer", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("answered_by", sa.Text(), nullable=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("consumed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "step_id"],
            ["steps.tenant_id", "steps.id"],
            name=op.f("fk_questions_tenant_id_step_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_questions")),
    )
    op.create_index(
        "ix_questions_open",
        "questions",
        ["tenant_id", "asked_at"],
        unique=False,
        postgresql_where=sa.text("answered_at IS NULL AND withdrawn_at IS NULL"),
    )
    op.create_index("ix_questions_task", "questions", ["tenant_id", "task_id"], unique=False)
    op.create_index("uq_questions_call", "questions", ["tenant_id", "step_id", "call_id"], unique=True)
    op.create_table(
        "step_needs",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("need_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "need_id"],
            ["steps.tenant_id", "steps.id"],
            name=op.f("fk_step_needs_tenant_id_need_id"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "step_id"],
            ["steps.tenant_id", "steps.id"],
            name=op.f("fk_step_needs_tenant_id_step_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "step_id", "need_id", name=op.f("pk_step_needs")),
    )
    op.create_index("ix_step_needs_need", "step_needs", ["tenant_id", "need_id", "step_id"], unique=False)
    op.create_table(
        "tool_calls",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("conversation", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "arguments",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("is_error", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=True),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "step_id"],
            ["steps.tenant_id", "steps.id"],
            name=op.f("fk_tool_calls_tenant_id_step_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "step_id", "conversation", "id", name=op.f("pk_tool_calls")),
    )
    op.create_table(
        "turns",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("conversation", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("message", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "step_id"], ["steps.tenant_id", "steps.id"], name=op.f("fk_turns_tenant_id_step_id")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "step_id", "id", name=op.f("pk_turns")),
    )
    op.create_index(
        "uq_turns_number",
        "turns",
        ["tenant_id", "step_id", "conversation", "number"],
        unique=True,
        postgresql_where=sa.text("kind = 'turn'"),
    )
    op.create_table(
        "usage",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("conversation", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("recorded", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("input_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cache_read_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cache_write_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cost_usd", sa.Numeric(), nullable=True),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "step_id"], ["steps.tenant_id", "steps.id"], name=op.f("fk_usage_tenant_id_step_id")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_usage")),
        sa.UniqueConstraint(
            "tenant_id",
            "step_id",
            "conversation",
            "turn",
            name=op.f("uq_usage_tenant_id_step_id_conversation_turn"),
        ),
    )
    op.create_index("ix_usage_task", "usage", ["tenant_id", "task_id"], unique=False)
    for guard in GUARDS:
        op.execute(guard)


def downgrade() -> None:
    op.drop_index("ix_usage_task", table_name="usage")
    op.drop_table("usage")
    op.drop_index("uq_turns_number", table_name="turns", postgresql_where=sa.text("kind = 'turn'"))
    op.drop_table("turns")
    op.drop_table("tool_calls")
    op.drop_index("ix_step_needs_need", table_name="step_needs")
    op.drop_table("step_needs")
    op.drop_index("uq_questions_call", table_name="questions")
    op.drop_index("ix_questions_task", table_name="questions")
    op.drop_index(
        "ix_questions_open",
        table_name="questions",
        postgresql_where=sa.text("answered_at IS NULL AND withdrawn_at IS NULL"),
    )
    op.drop_table("questions")
    op.drop_table("attempts")
    op.drop_index("ix_workflow_history_workflow", table_name="workflow_history")
    op.drop_table("workflow_history")
    op.drop_index("ix_steps_task", table_name="steps")
    op.drop_index(
        "ix_steps_ready",
        table_name="steps",
        postgresql_where=sa.text("status = 'queued' AND ready_at IS NOT NULL"),
    )
    op.drop_index(
        "ix_steps_not_before",
        table_name="steps",
        postgresql_where=sa.text("status IN ('queued', 'running') AND not_before IS NOT NULL"),
    )
    op.drop_index("ix_steps_leases", table_name="steps", postgresql_where=sa.text("lease_until IS NOT NULL"))
    op.drop_index("ix_steps_claimed", table_name="steps", postgresql_where=sa.text("claimed_at IS NOT NULL"))
    op.drop_table("steps")
    op.drop_table("plan_revisions")
    op.drop_table("workflows")
    op.drop_index(
        "ix_messages_waiting", table_name="messages", postgresql_where=sa.text("delivered_at IS NULL")
    )
    op.drop_table("messages")
    op.drop_table("logs")
    op.drop_index("ix_interventions_task", table_name="interventions")
    op.drop_table("interventions")
    op.drop_table("events")
    op.drop_index("ix_effects_task", table_name="effects")
    op.drop_table("effects")
    op.drop_index("ix_artifacts_task", table_name="artifacts")
    op.drop_table("artifacts")
    op.drop_index(
        "uq_tasks_external_id", table_name="tasks", postgresql_where=sa.text("external_id IS NOT NULL")
    )
    op.drop_index(
        "ix_tasks_undelivered",
        table_name="tasks",
        postgresql_where=sa.text("entry_signature IS NOT NULL AND entry_delivered_at IS NULL"),
    )
    op.drop_index("ix_tasks_parent", table_name="tasks", postgresql_where=sa.text("parent_id IS NOT NULL"))
    op.drop_index(
        "ix_tasks_live",
        table_name="tasks",
        postgresql_where=sa.text("status IN ('pending_input', 'queued', 'running')"),
    )
    op.drop_index("ix_tasks_created", table_name="tasks")
    op.drop_table("tasks")
    op.drop_table("settings")
    op.drop_index("uq_repositories_url", table_name="repositories")
    op.drop_table("repositories")
    op.drop_table("limits")
    op.drop_table("idempotency_keys")
    op.drop_index("uq_api_keys_sha256", table_name="api_keys")
    op.drop_table("api_keys")
    op.drop_index(
        "ix_agents_alive",
        table_name="agents",
        postgresql_where=sa.text("status NOT IN ('offline', 'released')"),
    )
    op.drop_table("agents")
    op.execute("DROP FUNCTION refuse_change_of_ended_row()")
