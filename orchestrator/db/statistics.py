"""What the planner knows of our tables, kept true while they grow fast.

Statements are planned once a connection and go by keys; but on tables that were tiny then, "all rows of the
tenant" looks as cheap as a key, and each later step reads as many rows as there are. New statistics make
every connection plan anew. Postgres' own come a minute late at best, long enough for thousands of steps.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from orchestrator.db.sql import rows, statement

TABLES: Final = (
    "tasks",
    "workflows",
    "steps",
    "step_needs",
    "attempts",
    "events",
    "turns",
    "tool_calls",
    "questions",
    "interventions",
    "run_tokens",
    "model_calls",
    "usage",
    "budgets",
)
_FEW: Final = 200
_OUTGROWN: Final = statement(
    f"""
    SELECT c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = current_schema() AND c.relkind = 'r' AND c.relname = ANY(:tables)
      AND pg_stat_get_mod_since_analyze(c.oid) > {_FEW} + greatest(c.reltuples, 0) / 2
    ORDER BY 1
    """
)


def refresh(connection: Connection) -> list[str]:
    """Tables that changed by half of what they held when they were last looked at; they are known again."""
    names = [str(row["name"]) for row in rows(connection, _OUTGROWN, tables=list(TABLES))]
    for name in names:
        connection.exec_driver_sql(f"ANALYZE {name}")
    return names
