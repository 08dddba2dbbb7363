"""One transaction of a claim, in the agents' words: who writes without the fence has lost the lease."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.db.connect import Connection, Engine
from orchestrator.db.journal import FenceLost
from orchestrator.engine.ports import LeaseLost


@contextmanager
def fenced(engine: Engine) -> Iterator[Connection]:
    """Raises LeaseLost; nothing of it is written then."""
    try:
        with engine.begin() as connection:
            yield connection
    except FenceLost:
        raise LeaseLost from None
