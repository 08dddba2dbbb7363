"""The sweep writes down when it sent a caller's message again, so that it can back off."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_entry_publications"
down_revision = "0002_bounds"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("entry_published_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "tasks",
        sa.Column("entry_publications", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("tasks", "entry_publications")
    op.drop_column("tasks", "entry_published_at")
