"""The schema that migrations make is the one that the models describe."""

from __future__ import annotations

from datetime import timedelta

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from orchestrator.db.models import Base
from orchestrator.db.upgrade import _config, is_current, upgrade
from tests.integration.ledger import Ledger, opened
from tests.servers import PostgresServer

_SHAPE = """
    SELECT conrelid::regclass::text || '.' || conname AS name, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
      AND conrelid::regclass::text <> 'alembic_version' AND contype <> 'n'
    UNION ALL
    SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'
    UNION ALL
    SELECT table_name || '.' || column_name,
        concat_ws(' ', data_type, is_nullable, column_default, is_identity)
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
"""


def shape(ledger: Ledger) -> dict[str, str]:
    return {row["name"]: row["definition"] for row in ledger.rows(_SHAPE)}


def test_models_and_migrations_do_not_drift_apart(ledger: Ledger, postgres_server: PostgresServer) -> None:
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    url = postgres_server.fresh()
    described = opened(url)
    Base.metadata.create_all(described.engine)
    try:
        assert shape(ledger) == shape(described)
    finally:
        described.engine.dispose()
        postgres_server.drop(url)


def test_tasks_of_an_older_schema_keep_the_longest_time_that_they_may_take(
    postgres_server: PostgresServer,
) -> None:
    url = postgres_server.fresh()
    old = opened(url)
    with old.engine.connect() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001_first_schema")
        connection.commit()
    for task, budget in (("bounded", '{"max_duration": "PT1H30M"}'), ("free", "{}")):
        old.run(
            "INSERT INTO tasks (id, root_id, title, description, budget)"
            " VALUES (:task, :task, 'a', 'a', CAST(:budget AS jsonb))",
            task=task,
            budget=budget,
        )
    try:
        assert upgrade(old.engine)
        found = old.rows("SELECT id, max_duration FROM tasks ORDER BY id")
        assert [row["max_duration"] for row in found] == [timedelta(minutes=90), None]
    finally:
        old.engine.dispose()
        postgres_server.drop(url)


def test_a_schema_that_is_current_is_left_alone(ledger: Ledger) -> None:
    assert is_current(ledger.engine)
    assert upgrade(ledger.engine) == 0
    (version,) = ledger.rows("SELECT version_num FROM alembic_version")
    ledger.run("UPDATE alembic_version SET version_num = 'an older one'")
    assert not is_current(ledger.engine)
    ledger.run("UPDATE alembic_version SET version_num = :version_num", **version)


def test_terminal_rows_are_guarded_in_every_table_that_ends(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        found = connection.execute(
            text("SELECT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal")
        ).scalars()
        assert set(found) == {"steps", "tasks", "workflows"}
