"""Faults that come exactly at a COMMIT: the harness lays down an order, whoever commits next carries it out.

`before` and `after`: the process is killed there. `reply_lost`: Postgres commits, the process never hears it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg2
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

ORDERS: Final = ("before", "after", "reply_lost")
_commit: Final[Callable[[Any, Any], None]] = PGDialect_psycopg2.do_commit


def lay_down(at: Path, order: str) -> None:
    new = at.with_suffix(".new")
    new.write_text(order)
    new.rename(at)


def obey(at: Path) -> None:
    """From now on every COMMIT of this process looks whether there is an order."""

    def do_commit(self: PGDialect_psycopg2, connection: Any) -> None:
        order = _taken(at)
        if order == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        _commit(self, connection)
        if order == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "reply_lost":
            connection.close()
            raise psycopg2.OperationalError("server closed the connection unexpectedly")

    PGDialect_psycopg2.do_commit = do_commit  # type: ignore[method-assign, assignment]


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
