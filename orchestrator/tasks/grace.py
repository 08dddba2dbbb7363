"""Five seconds after a hard stop nothing that the agent started runs any more, whether it looks or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from orchestrator.core.assignment import Stop
from orchestrator.workspaces.kin import Lineage
from orchestrator.workspaces.sandbox import MARK

log: Final = structlog.get_logger(__name__)
GRACE_SECONDS: Final = 5.0


class Grace:
    """Of one claim. Only while the agent is at work: what the shell does afterwards (a partial patch, a
    bundle) has time limits of its own."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._lock = threading.Lock()
        self._lineage: Lineage | None = None
        self._seen_at: float | None = None

    @contextmanager
    def over_agent(self) -> Iterator[None]:
        """Around an agent's work, in its thread: that thread's children are the step's."""
        with self._lock:
            self._lineage = Lineage.of_this_thread(MARK)
        try:
            yield
        finally:
            with self._lock:
                self._lineage = None

    def look(self, now: float) -> None:
        """Called twice a second, with the monotonic clock, by a thread that waits for nobody."""
        if not self._stop.is_hard():
            return
        if self._seen_at is None:
            self._seen_at = now
        if now - self._seen_at < GRACE_SECONDS:
            return
        with self._lock:
            killed = self._lineage.kill() if self._lineage is not None else 0
        if killed:
            log.warning("processes_killed", count=killed, reason=self._stop.reason)
