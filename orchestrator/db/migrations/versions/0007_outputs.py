"""The whole output of a tool call, of which the model was shown a part."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007_outputs"
down_revision = "0006_subtasks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tool_calls", sa.Column("output", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("tool_calls", "output")
