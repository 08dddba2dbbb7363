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
