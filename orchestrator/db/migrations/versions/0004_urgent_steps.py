"""A heartbeat asks whether more urgent steps wait: what it finds them by, however long the other queues are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_urgent_steps"
down_revision = "0003_entry_publications"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_steps_urgent",
        "steps",
        ["published_at"],
        postgresql_where=sa.text(
            "status = 'queued' AND ready_at IS NOT NULL AND priority IN ('critical', 'high')"
        ),
    )


def downgrade() -> None:
    op.drop_index("ix_steps_urgent", table_name="steps")
