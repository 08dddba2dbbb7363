"""What a claim writes, in the agents' words: who writes without the fence has lost the lease."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.db.connect import Connection, Direct, Engine, at_once
from orchestrator.db.journal import FenceLost
from orchestrator.engine.ports import LeaseLost


@contextmanager
def fenced(engine: Engine) -> Iterator[Connection]:
    """One transaction. Raises LeaseLost; nothing of it is written then."""
    try:
        with engine.begin() as connection:
            yield connection
    except FenceLost:
        raise LeaseLost from None


@contextmanager
def fenced_at_once(engine: Engine) -> Iterator[Direct]:
    """Each call is a transaction of its own, in one round trip. Raises LeaseLost; nothing of that call is
    written then."""
    try:
        with at_once(engine) as direct:
            yield direct
    except FenceLost:
        raise LeaseLost from None
