"""Alembic's entry: it is handed an open connection by `orchestrator.db.upgrade`."""

from alembic import context

from orchestrator.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_server_default=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
