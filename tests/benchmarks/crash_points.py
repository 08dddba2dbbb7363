"""Faults that come exactly at a COMMIT: the harness lays down an order, whoever commits next carries it out.

`before` and `after`: the process is killed there. `reply_lost`: Postgres commits, the process never hears it.
A call that is a transaction of its own commits as it returns.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg2
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from orchestrator.db.sql import Prepared

ORDERS: Final = ("before", "after", "reply_lost")
_commit: Final[Callable[[Any, Any], None]] = PGDialect_psycopg2.do_commit
_execute: Final[Callable[[Prepared, Any, str, Mapping[str, Any]], None]] = Prepared.execute


def lay_down(at: Path, order: str) -> None:
    new = at.with_suffix(".new")
    new.write_text(order)
    new.rename(at)


def obey(at: Path) -> None:
    """From now on every COMMIT of this process looks whether there is an order."""

    def do_commit(self: PGDialect_psycopg2, connection: Any) -> None:
        _carry_out(_taken(at), connection, lambda: _commit(self, connection))

    def execute(self: Prepared, cursor: Any, call: str, values: Mapping[str, Any]) -> None:
        order = _taken(at) if cursor.connection.autocommit else None
        _carry_out(order, cursor.connection, lambda: _execute(self, cursor, call, values))

    PGDialect_psycopg2.do_commit = do_commit  # type: ignore[method-assign, assignment]
    Prepared.execute = execute  # type: ignore[method-assign]


def _carry_out(order: str | None, connection: Any, commit: Callable[[], None]) -> None:
    if order == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    commit()
    if order == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "reply_lost":
        connection.close()
        raise psycopg2.OperationalError("server closed the connection unexpectedly")


def _taken(at: Path) -> str | None:
    """The order, for one process alone."""
    mine = at.with_suffix(f".{os.getpid()}")
    try:
        at.rename(mine)
    except FileNotFoundError:
        return None
    order = mine.read_text()
    mine.unlink()
    return order
