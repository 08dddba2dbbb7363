"""Connections to Postgres, and what counts as Postgres being away.

The shells above the database hold transactions and must notice when it fails; `Connection`, `Engine` and
`SQLAlchemyError` are all that they may know of SQLAlchemy, and they know it from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg2
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
    TimeoutError as PoolTimeout,
)

from orchestrator.db.sql import Direct, failed

__all__ = ["Connection", "Direct", "Engine", "SQLAlchemyError", "at_once", "create", "is_away", "is_lost"]

_CONNECT_SECONDS: Final = 5
_AWAY: Final = ("57P", "08", "53")
"""SQLSTATE classes: operator intervention, connection exception, insufficient resources (disk full, too
many)."""
_BROKEN: Final = ("57P", "08")
_SESSION: Final = (
    "lock_timeout=30s",
    "idle_in_transaction_session_timeout=60s",
    # Prepared statements are planned once for all their values, perhaps while the tables are still empty:
    # every one of them goes from key to key, so the planner gets no other way to choose.
    "plan_cache_mode=force_generic_plan",
    "enable_seqscan=off",
    "enable_bitmapscan=off",
    "enable_hashjoin=off",
    "enable_mergejoin=off",
    # A plan that had no other way looks so dear that Postgres 17 and older would compile it at each run.
    "jit=off",
)


def create(url: str, *, application: str, pool_size: int = 4) -> Engine:
    """An engine for one process. `postgresql://` means psycopg2. Nothing connects before the first use."""
    parsed = make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg2")
    return create_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=30,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "application_name": application,
            # A partition is noticed in about 15 s instead of hours; a lock is waited for, never for ever.
            "keepalives_idle": 5,
            "keepalives_interval": 3,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
            "options": " ".join(f"-c {setting}" for setting in _SESSION),
        },
    )


@contextmanager
def at_once(engine: Engine) -> Iterator[Direct]:
    """A connection on which each call is a transaction of its own: one round trip, where `engine.begin()`
    needs three. A call of several statements split by `;` is one transaction, too."""
    try:
        pooled = engine.raw_connection()
    except psycopg2.Error as error:
        raise failed("connect", error, engine.dialect) from error
    driver: Any = pooled.driver_connection
    try:
        driver.autocommit = True
        yield Direct(pooled, engine.dialect)
    finally:
        if not driver.closed:
            driver.autocommit = False
        pooled.close()


def is_away(error: BaseException) -> bool:
    """True if the database could not be reached or was shutting down, so that the same call may work
    later."""
    if isinstance(error, DisconnectionError | PoolTimeout):
        return True
    if isinstance(error, DBAPIError):
        if error.connection_invalidated or isinstance(error, OperationalError):
            return True
        error = error.orig or error
    code = getattr(error, "pgcode", None) or ""
    return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError) or code.startswith(_AWAY)


def is_lost(error: BaseException) -> bool:
    """True if there was no connection or it broke, whatever it was to be used for: no lock that wasn't given,
    no full disk."""
    if isinstance(error, DisconnectionError | PoolTimeout):
        return True
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    code = getattr(error.orig, "pgcode", None)
    return error.connection_invalidated or code is None or code.startswith(_BROKEN)
