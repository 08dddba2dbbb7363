"""Tables that grow fast don't make each step dearer."""

from __future__ import annotations

from sqlalchemy import Connection, text

from orchestrator.db import completion, statistics
from orchestrator.queries.task import resolve
from tests.integration.ledger import TENANT, Ledger, step
from tests.integration.stack import until

MANY = 2_000
_COPY = """
    INSERT INTO {table} SELECT copy.* FROM {table} t, generate_series(1, :copies) n,
    LATERAL (SELECT replace(to_jsonb(t)::text, 'waiting', 'waiting-' || n)::jsonb AS fields) changed,
    LATERAL jsonb_populate_record(t, changed.fields) copy WHERE t.id LIKE '%waiting%'
"""
_READ = text(
    "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0) FROM pg_stat_xact_user_tables"
    " WHERE relname = 'steps'"
)


def fill(ledger: Ledger) -> None:
    """Tasks by the door, and then so many more that Postgres has had no time to look at them."""
    for number in range(50):
        ledger.task(f"t{number}")
    ledger.task("waiting")

    def copy(connection: Connection) -> None:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in ("tasks", "workflows", "steps"):
            connection.execute(text(_COPY.format(table=table)), {"copies": MANY})

    ledger.do(copy)


def rows_of_steps_read(ledger: Ledger, task_id: str) -> int:
    """By the success of one that another one needs."""
    refs = ledger.task(task_id, step("a"), step("b", "a"))
    claimed = ledger.take(refs["a"])

    def succeed(connection: Connection) -> int:
        before = connection.execute(_READ).scalar_one()
        assert completion.succeed(connection, refs["a"], claimed.fence, summary="done", result={})
        return int(connection.execute(_READ).scalar_one() - before)

    return ledger.do(succeed)


def outgrown(ledger: Ledger) -> list[str]:
    """Postgres counts what a transaction changed within a second of its end."""
    return until(lambda: ledger.do(statistics.refresh), "what has grown")


def test_steps_that_wait_are_not_read_by_those_that_run(ledger: Ledger) -> None:
    rows_of_steps_read(ledger, "planned-early")
    fill(ledger)
    assert "steps" in outgrown(ledger)
    assert rows_of_steps_read(ledger, "among-many") < 100


def test_a_planner_that_has_not_looked_yet_goes_by_keys_all_the_same(ledger: Ledger) -> None:
    rows_of_steps_read(ledger, "planned-early")
    fill(ledger)
    assert rows_of_steps_read(ledger, "among-many") < 100


def test_a_task_is_found_by_any_of_its_names_without_reading_the_others(ledger: Ledger) -> None:
    fill(ledger)
    read = text("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'tasks'")

    def look(connection: Connection) -> int:
        before = connection.execute(read).scalar_one()
        assert resolve(connection, TENANT, "t7") == "t7"
        return int(connection.execute(read).scalar_one() - before)

    assert ledger.do(look) < 10


def test_tables_are_looked_at_again_only_when_they_have_grown_by_half(ledger: Ledger) -> None:
    fill(ledger)
    outgrown(ledger)
    ledger.task("one-more")
    assert ledger.do(statistics.refresh) == []
