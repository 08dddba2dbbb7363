"""Connections for reading: one snapshot per screen, so that its parts can't contradict one another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """All statements see the same moment."""
    with engine.connect().execution_options(
        isolation_level="REPEATABLE READ", postgresql_readonly=True
    ) as connection:
        yield connection


@contextmanager
def glance(engine: Engine) -> Iterator[Connection]:
    """For a single statement: no transaction, one round trip."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection
