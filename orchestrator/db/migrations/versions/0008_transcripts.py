"""Transcripts of agents that keep a session in files of their own, so that any host can resume it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008_transcripts"
down_revision = "0007_outputs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "transcripts",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("'default'"), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("subpath", sa.Text(), nullable=False),
        sa.Column("uuid", sa.Text(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("entry", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "step_id"],
            ["steps.tenant_id", "steps.id"],
            name=op.f("fk_transcripts_tenant_id_step_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_transcripts")),
    )
    place = ["tenant_id", "step_id", "project", "session", "subpath"]
    op.create_index("ix_transcripts_place", "transcripts", [*place, "id"])
    op.create_index(
        "uq_transcripts_uuid",
        "transcripts",
        [*place, "uuid"],
        unique=True,
        postgresql_where=sa.text("uuid IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("transcripts")
