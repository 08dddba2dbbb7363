"""Waiting for Postgres: what a shell has in hand is worth more than its slot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

from orchestrator.db import connect
from orchestrator.db.connect import SQLAlchemyError

T = TypeVar("T")


def patiently(work: Callable[[], T], patience: timedelta) -> T:
    """Tries while Postgres is away, for as long as `patience` lasts; then what it threw is thrown."""
    deadline = time.monotonic() + patience.total_seconds()
    for pause in _pauses():
        try:
            return work()
        except SQLAlchemyError as error:
            if not connect.is_away(error) or time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
    raise AssertionError


def _pauses() -> Iterator[float]:
    pause = 0.05
    while True:
        yield pause
        pause = min(pause * 2, 2.0)
