"""Deadline and longest duration of a task are enforced: what the sweep finds them by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_bounds"
down_revision = "0001_first_schema"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("max_duration", sa.Interval(), nullable=True))
    op.execute(
        "UPDATE tasks SET max_duration = (budget ->> 'max_duration')::interval WHERE budget ? 'max_duration'"
    )
    op.create_index(
        "ix_tasks_deadline",
        "tasks",
        ["deadline"],
        postgresql_where=sa.text("finished_at IS NULL AND deadline > created_at"),
    )
    op.create_index(
        "ix_tasks_duration",
        "tasks",
        [sa.text("((started_at AT TIME ZONE 'UTC') + max_duration)")],
        postgresql_where=sa.text("finished_at IS NULL AND max_duration IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_tasks_duration", table_name="tasks")
    op.drop_index("ix_tasks_deadline", table_name="tasks")
    op.drop_column("tasks", "max_duration")
