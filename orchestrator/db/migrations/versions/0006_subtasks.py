"""Tasks that a step of another task started, and what becomes of a question that nobody answers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_subtasks"
down_revision = "0005_gateway"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("parent_conversation", sa.Integer(), nullable=True))
    op.add_column("tasks", sa.Column("parent_call_id", sa.Text(), nullable=True))
    op.add_column("tasks", sa.Column("origin_commit", sa.Text(), nullable=True))
    op.create_index(
        "uq_tasks_parent_call",
        "tasks",
        ["tenant_id", "parent_step_id", "parent_conversation", "parent_call_id"],
        unique=True,
        postgresql_where=sa.text("parent_step_id IS NOT NULL"),
    )
    op.create_index(
        "ix_tasks_tree",
        "tasks",
        ["tenant_id", "root_id"],
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index(
        "ix_tasks_live_children",
        "tasks",
        ["tenant_id", "parent_step_id"],
        postgresql_where=sa.text("parent_id IS NOT NULL AND finished_at IS NULL"),
    )
    op.create_index(
        "ix_steps_on_subtasks",
        "steps",
        ["waiting_since"],
        postgresql_where=sa.text("status = 'running' AND waiting_on = 'subtask'"),
    )
    op.add_column("questions", sa.Column("default_answer", sa.Text(), nullable=True))
    op.create_index(
        "ix_questions_expiring",
        "questions",
        ["expires_at"],
        postgresql_where=sa.text("answered_at IS NULL AND withdrawn_at IS NULL AND expires_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_questions_expiring", table_name="questions")
    op.drop_column("questions", "default_answer")
    op.drop_index("ix_steps_on_subtasks", table_name="steps")
    op.drop_index("ix_tasks_live_children", table_name="tasks")
    op.drop_index("ix_tasks_tree", table_name="tasks")
    op.drop_index("uq_tasks_parent_call", table_name="tasks")
    op.drop_column("tasks", "origin_commit")
    op.drop_column("tasks", "parent_call_id")
    op.drop_column("tasks", "parent_conversation")
