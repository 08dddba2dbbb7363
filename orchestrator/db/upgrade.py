"""Brings the schema up to date. Safe to run by several processes at once: one migrates, the others wait."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

_LOCK: Final = 0x6F7263_01
_FOLDER: Final = Path(__file__).parent / "migrations"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "os")
    return config


_TENANT_ALONE_IS_NO_WAY: Final = text(
    """
    SELECT pg_restore_attribute_stats('schemaname', c.table_schema::text, 'relname', c.table_name::text,
        'attname', 'tenant_id', 'inherited', false,
        'null_frac', 0::real, 'avg_width', 8, 'n_distinct', 1::real)
    FROM information_schema.columns c
    WHERE c.table_schema = current_schema() AND c.column_name = 'tenant_id' AND NOT EXISTS (
        SELECT 1 FROM pg_stats s
        WHERE s.schemaname = c.table_schema AND s.tablename = c.table_name AND s.attname = 'tenant_id')
    """
)
"""Every key begins with the tenant. Until a table is first analyzed, a planner would take the tenant alone
for as good a way to a row as its whole key, and read all rows of the tenant."""
_RESTORES_STATISTICS: Final = (18,)


def upgrade(engine: Engine) -> int:
    """Applies what is missing and returns how many migrations that were."""
    config = _config()
    script = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
        try:
            current = MigrationContext.configure(connection).get_current_revision()
            missing = len(list(script.iterate_revisions("head", current)))
            connection.commit()
            if missing:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                if (connection.dialect.server_version_info or ()) >= _RESTORES_STATISTICS:
                    connection.execute(_TENANT_ALONE_IS_NO_WAY)
                connection.commit()
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
            connection.commit()
    return missing


def is_current(engine: Engine) -> bool:
    """Whether the database has exactly the schema that this code expects."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head
