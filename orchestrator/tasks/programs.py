"""Celery's worker and beat, run in this very process.

Celery's own program would load Flower and an interactive shell first: a fifth of the time that a worker takes
to start. `celery -A orchestrator.tasks worker` does the same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from celery import Celery
from celery.utils.log import mlevel
from celery.utils.nodenames import host_format


def run_worker(
    app: Celery, hostname: str, queues: Sequence[str], *, pool: str, slots: int, log_level: str
) -> int:
    """Until it is told to end; its exit status. `hostname`: `%h` in it is this machine's name."""
    worker = app.Worker(
        hostname=host_format(hostname),
        queues=list(queues),
        pool_cls=pool,
        concurrency=slots,
        loglevel=mlevel(log_level),
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def run_beat(app: Celery, schedule: Path, *, log_level: str) -> None:
    """Until it is told to end."""
    app.Beat(loglevel=log_level, schedule=str(schedule)).run()
