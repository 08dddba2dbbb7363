"""Celery's worker and beat, run in this very process.

Celery's own program would load Flower and an interactive shell first: a fifth of the time that a worker takes
to start. `celery -A orchestrator.tasks worker` does the same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from celery.utils.log import mlevel
from celery.utils.nodenames import host_format

from orchestrator.queues.names import QueueName
from orchestrator.tasks import app


def run_worker(name: str, queues: Sequence[QueueName], *, pool: str, slots: int, log_level: str) -> int:
    """Until it is told to end; its exit status."""
    worker = app.Worker(
        hostname=host_format(f"{name}@%h"),
        queues=[queue.value for queue in queues],
        pool_cls=pool,
        concurrency=slots,
        loglevel=mlevel(log_level),
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def run_beat(schedule: Path, *, log_level: str) -> None:
    """Until it is told to end."""
    app.Beat(loglevel=log_level, schedule=str(schedule)).run()
